"""What `import qdpo` offers: names, light imports, types for others, and examples in docstrings that are true."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import qdpo

ROOT = Path(qdpo.__file__).resolve().parent
MODULES = sorted(path.stem for path in (ROOT / "api").glob("*.py") if path.stem != "__init__")


def test_every_name_is_there_and_has_its_home() -> None:
    assert set(qdpo._HOMES) == set(qdpo.__all__) - {"QdpoError", "__version__"}
    for name in qdpo.__all__:
        assert getattr(qdpo, name) is not None
        assert name in dir(qdpo)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = qdpo.trian  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    body = ast.parse((ROOT / "__init__.py").read_text()).body
    seen = {
        alias.name: node.module
        for block in body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == qdpo._HOMES
    assert (ROOT / "py.typed").is_file()


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; import qdpo; qdpo.QdpoError;"
        "heavy = {'torch', 'transformers', 'pydantic', 'rich', 'numpy', 'yaml', 'IPython'} & set(sys.modules);"
        "import qdpo as again; again.Config; again.Run; again.train;"
        "later = {'torch', 'transformers', 'IPython'} & set(sys.modules);"
        "sys.exit(str((heavy, later)) if heavy or later else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(f"qdpo.api.{module}")).failed == 0


def test_every_public_thing_is_documented() -> None:
    for name in set(qdpo._HOMES):
        thing = getattr(qdpo, name)
        assert thing.__doc__, name
        for part, value in vars(thing).items() if isinstance(thing, type) else ():
            if not part.startswith(("_", "model_")) and (callable(value) or isinstance(value, property)):
                assert value.__doc__, f"{name}.{part}"
