"""What README and docs show of the code and of results is what these are."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_parts_made_from_the_code_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("readme_parts", ROOT / "tools" / "readme_parts.py")
    assert spec is not None
    assert spec.loader is not None
    readme_parts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme_parts)
    assert "README.md" in readme_parts.PARTS
    for name in readme_parts.PARTS:
        assert readme_parts.filled(name) == (ROOT / name).read_text(), "run: python tools/readme_parts.py"


def test_pictures_that_the_readme_shows_exist() -> None:
    import re

    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
