"""Constraints for installing qdpo beside what a machine has: `python keep_installed.py > constraints.txt`.

What is installed and what qdpo takes as it is stays: Colab's torch is gigabytes and built for its driver, and a running
kernel goes on with the numpy that it has loaded. Everything else comes at the version that the tests were run with. A
package of `pyproject.toml` that has to be replaced is told on standard error.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parents[1]


def kept(tested: list[str], needed: list[Requirement], installed: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Which of the tested versions hold on a machine.

    Args:
        tested: lines of constraints.txt.
        needed: what qdpo itself requires.
        installed: version of each package that is there, by its canonical name.

    Returns:
        The lines that hold, and the versions that are replaced, by package.
    """
    bounds = {canonicalize_name(requirement.name): requirement.specifier for requirement in needed}
    lines, replaced = [], {}
    for line in tested:
        name = canonicalize_name(Requirement(line).name)
        here = installed.get(name)
        if here is not None and (name not in bounds or bounds[name].contains(here, prereleases=True)):
            continue
        lines.append(line)
        if here is not None:
            replaced[name] = here
    return lines, replaced


def main() -> None:
    """Print the constraints, and say what is replaced."""
    tested = [line for line in (HERE / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    installed = {canonicalize_name(found.name): found.version for found in distributions() if found.name}
    lines, replaced = kept(tested, [Requirement(text) for text in project["dependencies"]], installed)
    print("\n".join(lines))
    for name, version in replaced.items():
        print(f"{name} {version} is replaced: qdpo takes {name}{_wanted(project, name)}", file=sys.stderr)
    if "torch" in replaced:
        beside = [name for name in ("torchvision", "torchaudio", "torchcodec") if name in installed]
        if beside:
            print(f"built for the old torch, and to be removed: pip uninstall -y {' '.join(beside)}", file=sys.stderr)


def _wanted(project: dict[str, list[str]], name: str) -> str:
    wanted = (Requirement(text) for text in project["dependencies"])
    return next(str(requirement.specifier) for requirement in wanted if canonicalize_name(requirement.name) == name)


if __name__ == "__main__":
    main()
