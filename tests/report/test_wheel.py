"""What card and page are made from is in the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="only in a checkout")
def test_templates_style_and_script_are_in_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("qdpo", "presets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in ("templates", "web")
        for path in (ROOT / "qdpo" / "report" / folder).iterdir()
    }
    assert {"qdpo/report/templates/card.md.jinja", "qdpo/report/templates/report.html.jinja"} < wanted
    assert wanted <= held, sorted(wanted - held)
