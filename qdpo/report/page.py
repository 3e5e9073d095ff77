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
from qdpo.export.verify.report import COLUMNS, VERDICTS, cells, lines_of
from qdpo.report import page_data as data
from qdpo.report.facts import gather
from qdpo.report.templating import page_environment

PAGE = "report.html"
SAMPLE_STEPS = 12
"""Evaluations whose samples are shown; of more some, the first and the last among them."""


def write_page(run_dir: Path) -> Path:
    """Write `report.html` into the run directory.

    Raises:
        InputMissingError: the folder is not a run directory, or a file in it cannot be understood.
        DiskError, OutputError: the file cannot be written.
    """
    files.atomic_write(run_dir / PAGE, render_page(run_dir))
    return run_dir / PAGE


def render_page(run_dir: Path, live: bool = False) -> str:
    """The page of a run, from the files in its run directory alone.

    Args:
        run_dir: the run directory.
        live: for `qdpo.report.serve`: the page asks its server for what is new, and can stop the run.

    Raises:
        InputMissingError: as `write_page`.
    """
    facts = gather(run_dir)
    style, script, ask = _asset("report.css"), _asset("report.js"), _asset("live.js")
    margins = [float(pair["margin"]) for pair in facts.pairs]
    reach, bars = data.histogram(margins)
    steps = sorted({row["step"] for row in facts.samples})
    return (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            run=facts,
            config=facts.config,
            style=style,
            script=script,
            style_digest=_digest(style),
            script_digest=_digest(script),
            charts=data.charts(facts),
            pairs=data.pairs(facts),
            margins=margins,
            characters=data.CHARACTERS,
            reach=reach,
            bars=bars,
            sample_steps=data.spread(steps, SAMPLE_STEPS),
            live={"script": ask, "digest": _digest(ask)} if live else None,
            samples_of=data.samples,
            written={written.step: written for written in facts.written},
            lines_of=lines_of,
            verdicts=VERDICTS,
            parity_columns=COLUMNS,
            parity_cells=cells,
        )
    )


def _asset(name: str) -> str:
    return (resources("qdpo") / "report" / "web" / name).read_text("utf-8")


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
