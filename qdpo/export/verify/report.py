"""A verification as a table for the terminal, a section for the model card, and verify.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from qdpo.console import fail, good, note, say, warn
from qdpo.errors import QdpoError
from qdpo.export.verify.checks import Check
from qdpo.export.verify.verdict import WAY_OUT, Finding, Verdict, verdict_of

SCHEMA = 2
"""Of verify.json; 1 measured against the unrounded base, and its figures mean something else."""

VERDICTS = {
    "passed": "verified",
    "lost": "HAS LOST what was trained",
    "cannot be told": "it cannot be told whether it keeps what was trained",
    "failed": "FAILED verification",
}
"""As card and page have them."""

COLUMNS = ("model", "reward accuracy", "margin gained (nats)", "KL to merged", "top-1 equal", "plain text", "engine")


@dataclass
class Report:
    """What was found out about one artefact.

    Attributes:
        name: the artefact.
        kind: its precision.
        checks: whether it is whole and what it should be, in order.
        findings: what was measured, held against what an export must keep.
        measures: the figures, by name.
        parity: rows by model: base, trained, merged (where that is another), rounded base, exported.
        samples: prompts with the greedy answers of the trained model and of the artefact.
        pairs: how many pairs were scored.
    """

    name: str
    kind: str
    checks: list[Check] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    measures: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    pairs: int = 0

    def take(self, name: str, figures: dict[str, Any] | None, finding: Finding) -> None:
        """Note figures, and what follows from them."""
        self.measures[name] = figures
        self.findings.append(finding)

    @property
    def verdict(self) -> Verdict:
        """On the artefact."""
        return verdict_of(self.checks, self.findings)

    def record(self) -> dict[str, Any]:
        """The entry for verify.json."""
        return {"name": self.name, "kind": self.kind, "verdict": self.verdict, "pairs": self.pairs, **asdict(self)}

    def show(self) -> None:
        """Print checks, findings, table and samples."""
        say(f"{self.name}: {self.verdict}")
        for check in self.checks:
            line = f"{check.name}: {check.detail}"
            if check.passed:
                good(line)
            elif check.passed is None:
                note(f"{check.name} was not run: {check.detail}")
            else:
                fail(QdpoError(line))
        for finding in self.findings:
            line = f"{finding.name}: {finding.detail}"
            if finding.result == "passed":
                good(line)
            elif finding.result == "lost":
                fail(QdpoError(line))
            else:
                note(line if finding.result == "reported" else f"{finding.name} cannot be told: {finding.detail}")
        if self.parity:
            rows = [list(COLUMNS), *([name, *cells(row)] for name, row in self.parity.items())]
            widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
            for row in rows:
                say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for sample in self.samples:
            say(f"  {sample['prompt']!r}")
            say(f"    trained:  {sample['trained']!r}")
            say(f"    exported: {sample['exported']!r}")
        if self.verdict == "lost":
            warn(f"{self.name} has lost what was trained; {WAY_OUT}")
        elif self.verdict == "cannot be told":
            warn(f"{self.name}: it cannot be told whether it keeps what was trained")


def cells(row: dict[str, Any]) -> list[str]:
    """The figures of a parity row as text."""
    margin, text = row["margin"], row["text"]
    return [
        "-" if margin is None else "ties" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
        "-" if margin is None else f"{margin:+.3f}",
        f"{row['kl']:.2g}",
        f"{row['top1']:.1%}",
        "-" if text is None else f"{text:.3f}",
        str(row["engine"]),
    ]


def lines_of(artefact: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, result and detail of all checks and findings of an entry of verify.json."""
    checks = [(check.name, check.word, check.detail) for check in (Check(**entry) for entry in artefact["checks"])]
    return [*checks, *((one["name"], one["result"], one["detail"]) for one in artefact["findings"])]


def card_section(record: dict[str, Any]) -> str:
    """The Markdown section about an export, from the contents of its verify.json."""
    lines = [f"### Export: {record['format']}", ""]
    lines.append(f"Merged into the {record['merge_base']} base. " if record.get("merge_base") else "")
    for artefact in record["artefacts"]:
        lines += ["", f"`{artefact['name']}`: {VERDICTS[artefact['verdict']]}, {artefact['pairs']} held-out pairs.", ""]
        lines += ["| check | result | detail |", "| --- | --- | --- |"]
        lines += [f"| {name} | {word} | {detail.replace('|', '/')} |" for name, word, detail in lines_of(artefact)]
        if artefact["parity"]:
            lines += ["", f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
            lines += [f"| {' | '.join([name, *cells(row)])} |" for name, row in artefact["parity"].items()]
    return "\n".join(lines).strip() + "\n"
