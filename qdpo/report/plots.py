"""Loss, rewards and accuracies over steps, as small PNG files.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; line style and markers say the same without
colour. Figures are built by the object API: no global state, no display.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from qdpo import files
from qdpo.config.loss import LossSettings
from qdpo.report import markdown as md
from qdpo.report.facts import Facts, gather
from qdpo.run.record import all_ties

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
SIZE_INCHES, DPI = (10, 6), 100

STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same everywhere
    "font.size": 13,
    "axes.titlesize": 15,
    "axes.titlepad": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.edgecolor": "#888888",
    "axes.axisbelow": True,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
}


def draw_plots(run_dir: Path) -> list[Path]:
    """Draw `plots/loss.png`, `plots/rewards.png` and `plots/accuracies.png` from a run's metrics.

    A plot without a single point is not drawn. Values that are not finite leave gaps.

    Returns:
        The files that were written.

    Raises:
        InputMissingError: the folder is not a run directory.
        DiskError, OutputError: a file cannot be written.
    """
    run = gather(run_dir)
    folder = run_dir / "plots"
    with files.explained(folder):
        folder.mkdir(exist_ok=True)
    written = []
    for name, title, draw in PLOTS:
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
            axes = figure.add_subplot()
            axes.margins(x=0.02)
            if draw(axes, run):
                axes.set_xlabel("step")
                axes.set_title(_title(run, title), loc="left")
                files.atomic_write(folder / name, _png(figure))
                written.append(folder / name)
    return written


def _title(run: Facts, what: str) -> str:
    # A dollar sign would start mathematics.
    name = md.without_folders(run.title).replace("$", r"\$")
    return f"{name}: {what}"


def _loss(axes: Axes, run: Facts) -> bool:
    drawn = _train(axes, run, "loss", GREY, "training", "-")
    drawn |= _heldout(axes, run, "loss", BLUE, "held-out", "-", "o")
    if drawn and _starts_at_ln2(run.config.loss):
        _level(axes, math.log(2), "ln 2: no preference")
    axes.set_ylabel("loss")
    _legend(axes)
    return drawn


def _rewards(axes: Axes, run: Facts) -> bool:
    drawn = False
    for key, title, colour, style, marker in (
        ("rewards/chosen", "chosen", BLUE, "-", "o"),
        ("rewards/rejected", "rejected", ORANGE, "--", "s"),
        ("rewards/margins", "margin = chosen − rejected", GREEN, "-.", "^"),
    ):
        drawn |= _train(axes, run, key, colour, None, style)
        drawn |= _heldout(axes, run, key, colour, title, style, marker)
    if drawn:
        axes.axhline(0, color="#888888", linewidth=1)
    axes.set_ylabel("reward")
    _legend(axes, "held-out; thin: training")
    return drawn


def _accuracies(axes: Axes, run: Facts) -> bool:
    key = "rewards/accuracies"
    drawn = _train(axes, run, key, GREY, "training", "-")
    drawn |= _heldout(axes, run, key, BLUE, "held-out", "-", "o")
    drawn |= _heldout(axes, run, "logps/accuracies", GREEN, "held-out, by log-probability alone", "-.", "^")
    if drawn:
        _level(axes, 0.5, "0.5: chance")
    axes.set_ylabel("share of pairs")
    axes.set_ylim(-0.03, 1.03)
    _legend(axes)
    return drawn


PLOTS: tuple[tuple[str, str, Callable[[Axes, Facts], bool]], ...] = (
    ("loss.png", "loss", _loss),
    ("rewards.png", "rewards, beta × log-ratio to the reference", _rewards),
    ("accuracies.png", "pairs whose chosen completion has the higher reward", _accuracies),
)
"""File, title and drawing function of each plot; the function says whether there was anything to draw."""


def _starts_at_ln2(loss: LossSettings) -> bool:
    return loss.loss_type == ["sigmoid"] and loss.loss_weights in (None, [1.0])


def _train(axes: Axes, run: Facts, key: str, colour: str, label: str | None, style: str) -> bool:
    steps, values = _points(run.train, key)
    axes.plot(steps, values, style, color=colour, alpha=0.65, linewidth=1.3, label=label)
    return _any(values)


def _heldout(axes: Axes, run: Facts, key: str, colour: str, label: str, style: str, marker: str) -> bool:
    steps, values = _points(run.evals, key)
    axes.plot(steps, values, style, color=colour, linewidth=2.4, marker=marker, markersize=8, label=label)
    return _any(values)


def _level(axes: Axes, value: float, label: str) -> None:
    axes.axhline(value, color="#444444", linewidth=1.2, linestyle=":", label=label)


def _legend(axes: Axes, title: str | None = None) -> None:
    # Only what has points gets an entry.
    found = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    handles = [line for line in found if _any(np.asarray(line.get_ydata(), dtype=float).tolist())]
    if handles:
        axes.legend(handles=handles, title=title, handlelength=3)


def _points(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    # Before the first step every reward is 0: an accuracy of 0 would look like a bad start and is none.
    rows = [row for row in rows if key in row and not (key == "rewards/accuracies" and all_ties(row))]
    found = [(row["step"], md.number(row[key])) for row in rows]
    return [step for step, _ in found], [math.nan if value is None else value for _, value in found]


def _any(values: list[float]) -> bool:
    return any(math.isfinite(value) for value in values)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # No software name or date in the file: the same run draws the same bytes.
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return stream.getvalue()
