"""The card's section on the preference pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qdpo.data.report import DataReport, contamination_sentence
from qdpo.report import markdown as md
from qdpo.report import names
from qdpo.run.record import RunRecord, dig

_PARTS = (("train", "Training"), ("heldout", "Held-out"))
_FIELDS = (("Prompts", "prompt"), ("Chosen completions", "chosen"), ("Rejected completions", "rejected"))


def training_data(record: RunRecord) -> str:
    """`## Training and evaluation data`: what was read, left out and cut."""
    parts = ["## Training and evaluation data", _data_table(record)]
    reasons = [line for part, title in _PARTS for line in _left_out(record, part, title)]
    if reasons:
        parts.append("Rows were left out for these reasons:\n\n" + "\n".join(reasons))
    parts += _findings(record)
    data = record.config.data
    parts.append(
        f"Prompts are cut on the left to {md.count(data.max_prompt_length)} tokens, completions on the right so that "
        f"both together have at most {md.count(data.max_length)}."
    )
    return "\n\n".join(parts)


def _findings(record: RunRecord) -> list[str]:
    """What the data report remarks on, and what of evaluation sets the pairs touch, in plain words."""
    try:
        report = DataReport.from_dict(record.data["train"]) if record.data else None
    except (KeyError, TypeError):
        return []  # a report of another version
    if report is None:
        return []
    findings = []
    about = {contamination_sentence(entry) for entry in report.contamination}
    remarks = [remark for remark in report.remarks() if remark not in about]
    if remarks:
        findings.append("About the training pairs:\n\n" + "\n".join(f"- {md.text(remark)}" for remark in remarks))
    if about:
        lines = [f"- {md.text(contamination_sentence(entry))}" for entry in report.contamination]
        findings.append("### Contamination\n\nCompared with evaluation sets:\n\n" + "\n".join(lines))
    return findings


def _data_table(record: RunRecord) -> str:
    def cells(title: str, show: Callable[[str], str]) -> list[str]:
        return [title, *(show(part) for part, _ in _PARTS)]

    def lengths(field: str) -> Callable[[str], str]:
        return lambda part: _lengths(record, part, field)

    def counted(*keys: str) -> Callable[[str], str]:
        return lambda part: md.count(dig(record.data, part, *keys))

    rows = [
        cells("Source", lambda part: names.dataset_link(names.dataset_name(record, part))),
        cells("Split", lambda part: md.text(dig(record.run, "data", part, "split") or md.MISSING)),
        cells("Recognised as", lambda part: md.text(dig(record.data, part, "format") or md.MISSING)),
        cells("Rows read", counted("rows_read")),
        cells("Rows left out", lambda part: _left_out_total(record, part)),
        cells("Pairs used", lambda part: md.count(_pairs(record, part))),
        *(cells(f"{title} cut", counted("cut", key)) for title, key in _FIELDS),
        *(cells(f"Tokens of {key}", lengths(key)) for _, key in _FIELDS),
    ]
    table = md.table(("", *(title for _, title in _PARTS)), rows, align="first-left")
    return f"{table}\n\nTokens are given as minimum / median / 95th percentile / maximum."


def _pairs(record: RunRecord, part: str) -> Any:
    used = dig(record.data, part, "pairs")
    return used if used is not None else dig(record.run, "data", part, "pairs")


def _lengths(record: RunRecord, part: str, field: str) -> str:
    found = dig(record.data, part, "tokens", field)
    if not isinstance(found, dict):
        return md.MISSING
    return " / ".join(md.count(found.get(key)) for key in ("min", "median", "p95", "max"))


def _left_out_total(record: RunRecord, part: str) -> str:
    reasons = dig(record.data, part, "left_out")
    if not isinstance(reasons, dict):
        return md.MISSING
    return md.count(sum(md.number(dig(entry, "count")) or 0 for entry in reasons.values()))


def _left_out(record: RunRecord, part: str, title: str) -> list[str]:
    reasons = dig(record.data, part, "left_out")
    if not isinstance(reasons, dict):
        return []
    lines = []
    for reason, entry in reasons.items():
        first = dig(entry, "first_rows") or []
        rows = f" (first: {', '.join(md.text(row) for row in first[:5])})" if first else ""
        lines.append(f"- {title}: {md.count(dig(entry, 'count'))} rows, {md.text(reason)}{rows}")
    return lines
