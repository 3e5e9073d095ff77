"""README and docs: made from the code and from results where they show them, short, and without a dead end."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob(".github/**/*.md")])
PAGES += [ROOT / "notebooks" / "README.md", ROOT / "benchmarks" / "LOG.md"]
FOLDERS = "qdpo|presets|examples|notebooks|tools|benchmarks|docs|tests"


@pytest.fixture(scope="module")
def docs_parts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_parts", ROOT / "tools" / "docs_parts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parts_made_from_the_code_are_up_to_date(docs_parts: ModuleType) -> None:
    assert {"README.md", "docs/api.md", "docs/architecture.md", "docs/benchmarks.md"} <= set(docs_parts.PARTS)
    for name in docs_parts.PARTS:
        assert docs_parts.filled(name) == (ROOT / name).read_text(), "run: python tools/docs_parts.py"


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8192


# ---------------------------------------------------------------------------------------------------------------- links


def anchors(text: str) -> set[str]:
    """The names under which a page's headings are linked, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code(text: str) -> str:
    """The text without blocks of code, fenced or indented, and without code in a line."""
    text = re.sub(r"^(```+).*?^\1$", "", text, flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^    .*$", "", text, flags=re.M))


def dead_links(text: str, folder: Path) -> list[str]:
    """Links of a page in `folder` to files and headings that are not there."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = folder / name
        page = text if not name else target.read_text() if target.suffix == ".md" and target.is_file() else ""
        if (name and not target.exists()) or (anchor and anchor not in anchors(page)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page.read_text(), page.parent) == []


def test_the_site_holds_what_its_pages_link_to() -> None:
    """What docs/ links to is in docs/: the site is built from nothing else."""
    for page in (ROOT / "docs").glob("*.md"):
        assert not re.search(r"\]\(\.\./", without_code(page.read_text())), page.name


def test_a_dead_link_is_seen() -> None:
    page = (
        "# One\n\n[a](data.md) [b](nothing.md) [c](#one) [d](#two) [e](data.md#nowhere) [f](https://x.org) `[g](h.md)`"
    )
    assert dead_links(page, ROOT / "docs") == ["nothing.md", "#two", "data.md#nowhere"]


# ------------------------------------------------------------------------------------------------------ names of files


def missing_files(text: str) -> list[str]:
    """Files of the repository that a text names and that are not there."""
    named = re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w\.(?:py|md|yaml|ipynb|json|css|js))\b", text)
    # a name in capitals stands for any file
    return [name for name in dict.fromkeys(named) if not (ROOT / name).is_file() and not Path(name).stem.isupper()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page: Path) -> None:
    assert missing_files(page.read_text()) == []


def test_a_file_that_is_gone_is_seen() -> None:
    text = "see `qdpo/errors.py`, tests/gone.py, runs/tests/x.py and docs/PAGE.md"
    assert missing_files(text) == ["tests/gone.py"]


def test_every_page_is_in_the_sites_navigation() -> None:
    config = (ROOT / "zensical.toml").read_text()
    assert sorted(re.findall(r'= "([\w-]+\.md)"', config)) == sorted(p.name for p in (ROOT / "docs").glob("*.md"))
