"""A verification as a table for the terminal, a section for the model card, and verify.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from qdpo.console import fail, good, note, say
from qdpo.errors import QdpoError
from qdpo.export.verify.checks import Check

COLUMNS = ("model", "reward accuracy", "margin (nats)", "margin kept", "KL to trained", "top-1 equal", "engine")


@dataclass
class Report:
    """What was found out about one artefact.

    Attributes:
        name: the artefact.
        kind: its precision.
        checks: the checks, in order.
        parity: rows by model: base, trained, merged, exported.
        samples: prompts with the greedy answers of the trained model and of the artefact.
        pairs: how many pairs were scored.
    """

    name: str
    kind: str
    checks: list[Check] = field(default_factory=list)
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    pairs: int = 0

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def record(self) -> dict[str, Any]:
        """The entry for verify.json."""
        return {"name": self.name, "kind": self.kind, "passed": self.passed, "pairs": self.pairs, **asdict(self)}

    def show(self) -> None:
        """Print checks, table and samples."""
        say(f"{self.name}:")
        for check in self.checks:
            line = f"{check.name}: {check.detail}"
            if check.passed:
                good(line)
            elif check.passed is None:
                note(f"{check.name} was not run: {check.detail}")
            else:
                fail(QdpoError(line))
        if self.parity:
            rows = [list(COLUMNS), *([name, *cells(row)] for name, row in self.parity.items())]
            widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
            for row in rows:
                say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for sample in self.samples:
            say(f"  {sample['prompt']!r}")
            say(f"    trained:  {sample['trained']!r}")
            say(f"    exported: {sample['exported']!r}")


def cells(row: dict[str, Any]) -> list[str]:
    """The figures of a parity row as text."""
    kept = row["margin_kept"]
    return [
        "ties" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
        f"{row['margin']:+.3f}",
        "-" if kept is None else f"{kept:.1%}",
        f"{row['kl']:.2g}",
        f"{row['top1']:.1%}",
        str(row["engine"]),
    ]


def card_section(record: dict[str, Any]) -> str:
    """The Markdown section about an export, from the contents of its verify.json."""
    lines = [f"### Export: {record['format']}", ""]
    lines.append(f"Merged into the {record['merge_base']} base. " if record.get("merge_base") else "")
    for artefact in record["artefacts"]:
        verdict = "verified" if artefact["passed"] else "**failed verification**"
        lines += ["", f"`{artefact['name']}`: {verdict}, {artefact['pairs']} held-out pairs.", ""]
        lines += ["| check | result | detail |", "| --- | --- | --- |"]
        lines += [
            f"| {check.name} | {check.word} | {check.detail.replace('|', '/')} |"
            for check in (Check(**entry) for entry in artefact["checks"])
        ]
        if artefact["parity"]:
            lines += ["", f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
            lines += [f"| {' | '.join([name, *cells(row)])} |" for name, row in artefact["parity"].items()]
    return "\n".join(lines).strip() + "\n"
