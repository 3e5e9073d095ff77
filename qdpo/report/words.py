"""The card's sections in words: the verdict on the curves, and samples of what the model says."""

from __future__ import annotations

from qdpo.report import markdown as md
from qdpo.run.record import RunRecord
from qdpo.verdicts.measured import evidence_of, read_samples
from qdpo.verdicts.rules import judge

SAMPLES = 4
CHARACTERS = 600


def verdict(record: RunRecord) -> str:
    """`## Verdict`: what the curves say, and what they rest on."""
    if not record.evals and not record.train:
        return ""
    lines = []
    for found in judge(evidence_of(record)):
        change = f" To change: {md.text(found.change)}." if found.change else ""
        mark = " (alarm)" if found.alarm else ""
        lines.append(f"- **{found.kind.capitalize()}**{mark}: {md.text(found.says)}.{change} ({md.text(found.source)})")
    return "\n\n".join(
        [
            "## Verdict",
            "Read from the curves by rules, of which each names its source; not a judgement of what the model writes.",
            "\n".join(lines),
        ]
    )


def samples(record: RunRecord) -> str:
    """`## Samples`: the answers of base and result at the last evaluation."""
    rows = read_samples(record.folder)
    if not rows:
        return ""
    step = record.adapter_step if any(row["step"] == record.adapter_step for row in rows) else rows[-1]["step"]
    last = [row for row in rows if row["step"] == step]
    shown = last[:SAMPLES]
    remark = f"{len(shown)} of {len(last)} prompts" if len(last) > len(shown) else f"{len(last)} prompts"
    parts = ["## Samples", f"Greedy answers at step {step}, {remark}, cut to {CHARACTERS} characters."]
    for row in shown:
        answers = [("Base", row["base"]), ("Result", row["policy"])]
        if row["base"] == row["policy"]:
            answers = [("Base and result alike", row["base"])]
        for title, text in (("Prompt", row["prompt"]), *answers):
            parts.append(f"**{title}**\n\n{md.block(_cut(text), 'text')}")
    return "\n\n".join(parts)


def _cut(text: str) -> str:
    clean = md.printable(text)
    return clean if len(clean) <= CHARACTERS else f"{clean[:CHARACTERS]} [...]"
