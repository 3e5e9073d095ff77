"""The data report as a table for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from qdpo.data.report import PARTS, DataReport
from qdpo.grammar import counted

BARS = " ▁▂▃▄▅▆▇█"


def table(title: str, report: DataReport) -> Table:
    """Rows, lengths and shares of one split."""
    view = Table(
        title=Text(f"{title}: {report.source}"),
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        show_header=False,
    )
    view.add_column("what", no_wrap=True)
    view.add_column("value", overflow="fold")
    view.add_row("recognised as", f"{report.format} ({report.format_reason})")
    for entry in report.sources[1:]:
        view.add_row("mixed with", f"{entry['source']}: {counted(entry['pairs'], 'pair')}, weight {entry['weight']:g}")
    view.add_row("rows read", f"{report.rows_read:,}")
    view.add_row("pairs used", f"{report.pairs:,}")
    for reason, left in report.reasons:
        view.add_row("left out", f"{left.count:,}: {reason} ({report.named(left.first_rows, left.count)})")
    if report.unread:
        view.add_row("not read", report.unread_columns())
    for part in PARTS:
        if part in report.tokens:
            lengths = report.tokens[part]
            view.add_row(
                f"tokens of {part}",
                f"{lengths['min']:,} to {lengths['max']:,}, median {lengths['median']:,}, 95 % to {lengths['p95']:,}  "
                f"{_bars(report.histogram[part]['counts'])} (bins double)",
            )
    cut = ", ".join(f"{count:,} {kind}" for kind, count in report.cut.items() if kind != "boundary")
    view.add_row("cut to length", cut)
    merged = report.cut.get("boundary", 0)
    view.add_row("merged at the boundary", f"{merged:,}" + (f", e.g. {report.boundary_example}" if merged else ""))
    if bias := report.length_bias:
        view.add_row(
            "length and label",
            f"chosen is longer in {bias['chosen_longer']:.1%}, as long in {bias['as_long']:.1%}; "
            f"AUC of length alone {bias['auc']:.3f}",
        )
    if alone := report.separable:
        view.add_row(
            "answers and label",
            f"without the prompt {alone['share']:.1%} of {alone['n']:,} pairs can be told apart, "
            f"[{100 * alone['low']:.1f}, {100 * alone['high']:.1f}]",
        )
    prompts = report.prompts
    alike = (
        f"; {near['prompts']:,} of all {near['looked_at']:,} almost the same as another"
        if (near := prompts.get("near"))
        else ""
    )
    view.add_row("prompts", f"{prompts.get('different', 0):,} different, {prompts.get('empty', 0):,} empty{alike}")
    near = report.duplicates.get("near")
    also = f", {near['count']:,} near among the first {near['looked_at']:,}" if near else ""
    view.add_row("duplicates", f"{report.duplicates.get('exact', {}).get('count', 0):,} exact{also}")
    view.add_row("conflicts", f"{report.conflicts.get('count', 0):,}")
    if report.scores:
        view.add_row("scores", f"{counted(report.scores['scored'], 'pair')}, {counted(report.scores['ties'], 'tie')}")
    if scripts := report.unicode.get("scripts"):
        view.add_row("scripts", ", ".join(f"{name} {count:,}" for name, count in scripts.items()))
    warnings = report.warnings()
    for remark in report.remarks():
        view.add_row("warning" if remark in warnings else "note", remark)
    return view


def _bars(counts: list[int]) -> str:
    most = max(counts)
    return "".join(BARS[0 if not n else 1 + round(7 * n / most)] for n in counts)
