"""Pairs as a file in qdpo's own schema: a line has prompt (text or messages), chosen, rejected, and scores if any."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdpo.errors import OutputError
from qdpo.files import atomic_write, explained
from qdpo.pairing.pieces import Prompt, are_texts, written


@dataclass(frozen=True)
class Preferred:
    """A pair that is to be written.

    Attributes:
        prompt: the conversation before the answers.
        chosen: the better answer.
        rejected: the worse one.
        scores: of the two, where there are any.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None

    def line(self, as_text: bool) -> str:
        """As a line of a file; prompts are texts or messages, the same in all lines."""
        row: dict[str, Any] = {"prompt": written(self.prompt, as_text), "chosen": self.chosen}
        row["rejected"] = self.rejected
        if self.scores is not None:
            row["chosen_score"], row["rejected_score"] = self.scores
        return json.dumps(row, ensure_ascii=False) + "\n"


def lines_of(pairs: Sequence[Preferred]) -> list[str]:
    """The lines of a file of pairs."""
    as_text = are_texts([pair.prompt for pair in pairs])
    return [pair.line(as_text) for pair in pairs]


def refuse_existing(out: Path) -> None:
    """Refuse to write over a file.

    Raises:
        OutputError: it is there.
    """
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} exists and is left as it is", "give the name of a new file with --out")


def write_new(out: Path, pairs: Sequence[Preferred]) -> None:
    """Write a file of pairs, whole or not at all.

    Raises:
        OutputError: there is a file already, or it cannot be written.
        DiskError: the disk is full.
    """
    refuse_existing(out)
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, "".join(lines_of(pairs)))
