"""What the notebooks' installation keeps of what a machine has, and what it replaces.

`COLAB` is what Colab publishes of its GPU image (googlecolab/backend-info, pip-freeze.gpu.txt, June 2026; Python 3.12),
as far as qdpo's own needs reach. pip's resolver sees it as installed, by records without packages behind them.

Tried by hand: Python 3.12.1 with the image's torch 2.11.0, numpy, pandas, matplotlib, huggingface_hub, IPython 7.34.0
and ipykernel 6.17.1, and the rest as `keep_installed.py` has it: both notebooks ran through there, on a CPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import packaging
import pytest
from notebooks.kernel import FOLDER
from packaging.requirements import Requirement

ROOT = FOLDER.parent
NEEDED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
TESTED = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]

COLAB = {
    "accelerate": "1.13.0",
    "datasets": "4.0.0",
    "dill": "0.3.8",
    "filelock": "3.29.0",
    "fsspec": "2025.3.0",
    "httpx": "0.28.1",
    "huggingface_hub": "1.17.0",
    "jinja2": "3.1.6",
    "markupsafe": "3.0.3",
    "matplotlib": "3.10.0",
    "multiprocess": "0.70.16",
    "networkx": "3.6.1",
    "numpy": "2.0.2",
    "packaging": "26.2",
    "pandas": "2.2.2",
    "peft": "0.19.1",
    "pyarrow": "18.1.0",
    "pydantic": "2.12.3",
    "pydantic_core": "2.41.4",
    "pyyaml": "6.0.3",
    "requests": "2.32.4",
    "rich": "13.9.4",
    "safetensors": "0.7.0",
    "sympy": "1.14.0",
    "tokenizers": "0.22.2",
    "torch": "2.11.0+cu128",
    "torchaudio": "2.11.0+cu128",
    "torchvision": "0.26.0+cu128",
    "tqdm": "4.67.3",
    "transformers": "5.9.0",
    "triton": "3.6.0",
}
REQUIRES = {"torch": ["triton==3.6.0"], "torchvision": ["torch==2.11.0"], "pydantic": ["pydantic-core==2.41.4"]}
"""The exact requirements among them, which a constraint must not contradict."""


@pytest.fixture(scope="module")
def keep_installed() -> ModuleType:
    """The program that the notebooks run."""
    spec = importlib.util.spec_from_file_location("keep_installed", FOLDER / "keep_installed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kept(keep_installed: ModuleType, installed: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    return keep_installed.kept(TESTED, [Requirement(text) for text in NEEDED], installed)


def test_colabs_torch_numpy_and_pandas_stay(keep_installed: ModuleType) -> None:
    lines, replaced = kept(keep_installed, COLAB)
    assert not any(line.partition("==")[0] in ("torch", "numpy", "pandas", "triton") for line in lines)
    assert {"torch", "numpy", "pandas"}.isdisjoint(replaced)
    assert replaced["transformers"] == "5.9.0"
    assert any(line.startswith("transformers==") for line in lines)


def test_a_torch_that_qdpo_does_not_take_is_replaced_by_the_tested_one(keep_installed: ModuleType) -> None:
    for version in ("2.9.1+cu128", "2.15.0"):
        lines, replaced = kept(keep_installed, COLAB | {"torch": version})
        assert replaced["torch"] == version
        assert any(line.startswith("torch==") for line in lines)


def test_an_empty_machine_gets_the_tested_versions(keep_installed: ModuleType) -> None:
    assert kept(keep_installed, {}) == (TESTED, {})


# ------------------------------------------------------------------------------------------------------ pip's resolver


class Machine:
    """A virtual environment with records of installed packages, and nothing behind them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        [self.packages] = (folder / "venv" / "lib").glob("python3.*/site-packages")
        # the one that is really there
        shutil.copytree(Path(packaging.__file__).parent, self.packages / "packaging")

    def installs(self, packages: dict[str, str]) -> None:
        """Pretend these packages are there."""
        for name, version in packages.items():
            record = self.packages / f"{name}-{version}.dist-info"
            record.mkdir()
            requires = "".join(f"Requires-Dist: {text}\n" for text in REQUIRES.get(name, ()))
            (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
            (record / "INSTALLER").write_text("pip\n")
            (record / "RECORD").write_text("")

    def constraints(self) -> tuple[Path, str]:
        """What keep_installed.py prints here, and what it says."""
        done = subprocess.run([self.python, FOLDER / "keep_installed.py"], capture_output=True, text=True, check=True)
        path = self.folder / "kept.txt"
        path.write_text(done.stdout)
        return path, done.stderr

    def resolved(self, constraints: Path) -> dict[str, str]:
        """What pip would install: version by name."""
        report = self.folder / "report.json"
        command = [self.python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", report, "-c", constraints]
        # a constraint of the machine's own configuration is none of Colab's
        environment = {**os.environ, "PIP_CONSTRAINT": ""}
        done = subprocess.run([*command, *NEEDED], env=environment, capture_output=True, text=True)
        if done.returncode and "No matching distribution" in done.stderr + done.stdout:
            pytest.skip("no package registry is reached")
        assert done.returncode == 0, done.stderr
        found = json.loads(report.read_text())["install"]
        return {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in found}


@pytest.mark.slow
def test_pip_leaves_colabs_torch_and_numpy(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.installs(COLAB)
    constraints, said = machine.constraints()
    found = machine.resolved(constraints)
    assert not {"torch", "numpy", "pandas", "triton"} & found.keys()
    assert not any(name.startswith(("nvidia", "cuda")) for name in found)
    assert "transformers==" + found["transformers"] in TESTED
    assert "transformers 5.9.0 is replaced" in said
    assert "torch " not in said


@pytest.mark.slow
def test_pip_replaces_a_torch_that_is_too_old(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.installs(COLAB | {"torch": "2.9.1"})
    constraints, said = machine.constraints()
    found = machine.resolved(constraints)
    assert "torch==" + found["torch"].partition("+")[0] in TESTED
    assert "numpy" not in found
    assert "torch 2.9.1 is replaced" in said
    assert "pip uninstall -y torchvision torchaudio" in said


@pytest.mark.slow
def test_without_it_the_constraints_replace_colabs_torch(tmp_path: Path) -> None:
    """The negative of the first: the tested versions alone take torch and numpy away."""
    machine = Machine(tmp_path)
    machine.installs(COLAB)
    found = machine.resolved(ROOT / "constraints.txt")
    assert {"torch", "numpy", "pandas"} <= found.keys()
