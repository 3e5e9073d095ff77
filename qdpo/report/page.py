"""`report.html`: a run on one page, a file that needs nothing else and asks no network for anything.

A content security policy lets only the page's own style and script through, by their hashes: should a text of the data
ever end up as markup, it would still not run.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files as resources
from pathlib import Path

from qdpo import files
from qdpo.report import markdown as md
from qdpo.report import page_data as found
from qdpo.report import page_sections as sections
from qdpo.report.html import Markup, joined, json_data, tag
from qdpo.run.record import RunRecord, read_run

PAGE = "report.html"

ORDERS = (
    ("lowest", "lowest margin first"),
    ("highest", "highest first"),
    ("closest", "closest to 0"),
    ("row", "by row"),
)
FILTERS = (("all", "all"), ("lost", "margin at most 0"), ("won", "margin above 0"))


def write_page(run_dir: Path) -> Path:
    """Write `report.html` into the run directory.

    Raises:
        InputMissingError: the folder is not a run directory, or a file in it cannot be understood.
        DiskError, OutputError: the file cannot be written.
    """
    files.atomic_write(run_dir / PAGE, render_page(run_dir))
    return run_dir / PAGE


def render_page(run_dir: Path) -> str:
    """The page of a run, from the files in its run directory alone.

    Raises:
        InputMissingError: as `write_page`.
    """
    record = read_run(run_dir)
    style, script = _asset("report.css"), _asset("report.js")
    charts, (pairs, margins) = found.charts(record), found.pairs(record)
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    # bars have their height from style attributes, which a hash cannot name
    policy += "; style-src-attr 'unsafe-inline'"
    head = joined(
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("title", f"{md.without_folders(record.name)}: report"),
        Markup(f"<style>{style}</style>"),
    )
    body = joined(
        _top(record),
        tag("main", *_sections(record, charts_of=[chart["id"] for chart in charts], shown=len(pairs), margins=margins)),
        tag("noscript", tag("p", "Curves and pairs are drawn by a script, which is switched off here.")),
        json_data({"charts": charts, "pairs": pairs}, "report-data"),
        Markup(f"<script>{script}</script>"),
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _asset(name: str) -> str:
    return (resources("qdpo") / "report" / "web" / name).read_text("utf-8")


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _top(record: RunRecord) -> Markup:
    state = record.run.get("state") or "unknown"
    about = [
        md.without_folders(record.config.about),
        f"state: {md.one_line(state)}",
        str(record.run.get("created") or ""),
    ]
    return joined(
        tag("h1", md.without_folders(record.name)),
        tag("p", " · ".join(part for part in about if part), class_="soft"),
        sections.verdicts(record),
        sections.numbers(record),
    )


def _sections(record: RunRecord, *, charts_of: list[str], shown: int, margins: list[float]) -> list[Markup]:
    parts = [("curves", "Curves", _curves(charts_of)), ("pairs", "Held-out pairs", _pairs(shown, margins))]
    parts += [(id, title, content) for id, title, make in sections.SECTIONS if (content := make(record))]
    links = tag("nav", *(tag("a", title, href=f"#{id}") for id, title, _ in parts), aria_label="sections")
    return [links, *(tag("section", tag("h2", title, id=id), content) for id, title, content in parts)]


def _curves(ids: list[str]) -> Markup:
    if not ids:
        return tag("p", "No step has been logged yet.")
    help = "Point to read values; drag to zoom in, double-click or reset for the whole run; arrow keys move the cursor."
    return joined(tag("p", help, class_="soft"), *(tag("div", id=id, class_="chart") for id in ids))


def _pairs(shown: int, margins: list[float]) -> Markup:
    if not margins:
        return tag("p", "There are no scored pairs in this run directory; qdpo eval --run DIR writes them.")
    lost = sum(margin <= 0 for margin in margins)
    lead = f"{len(margins):,} pairs, {lost:,} of them with a margin of at most 0."
    if shown < len(margins):
        lead += f" {shown:,} are here with their texts, evenly spaced in the order of their margins."
    controls = tag(
        "div",
        _select("pairs-order", "order", ORDERS),
        _select("pairs-filter", "which pairs", FILTERS),
        Markup('<input type="search" id="pairs-search" placeholder="search" aria-label="search in texts">'),
        class_="controls",
    )
    return joined(
        tag("p", f"{lead} A text is cut after {found.CHARACTERS:,} characters."),
        _histogram(margins),
        controls,
        tag("p", id="pairs-count", class_="soft"),
        tag("div", id="pairs-list"),
        tag("button", "more", id="pairs-more", type="button"),
    )


def _select(id: str, label: str, options: tuple[tuple[str, str], ...]) -> Markup:
    return tag("select", *(tag("option", title, value=value) for value, title in options), id=id, aria_label=label)


def _histogram(margins: list[float]) -> Markup:
    reach, counts = found.histogram(margins)
    most, middle = max(counts), len(counts) // 2
    bars = [
        tag(
            "div",
            style=f"height:{100 * count / most:.1f}%",
            title=f"{count}",
            **({"class_": "lost"} if i < middle else {}),
        )
        for i, count in enumerate(counts)
    ]
    ends = [tag("span", text) for text in (f"margin {-reach:.2f}", "0", f"{reach:+.2f}")]
    chart = tag("div", *bars, class_="bars", role="img", aria_label="how many pairs have which margin")
    return joined(chart, tag("div", *ends, class_="ends"))
