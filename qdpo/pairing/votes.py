"""A vote on two answers to one prompt: as a line of a file, as what it prefers, and which comparison comes next."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdpo.data.pieces import BadRow, Row
from qdpo.pairing.answers import Answer, Answered
from qdpo.pairing.pieces import answer_of, asked, written

UNDO = "undo"
SIDES = ("left", "right")
CHOICES = (*SIDES, "tie", "skip", "edit left", "edit right")


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt, as they are shown.

    Attributes:
        name: the same for the same answers, whatever else a file holds.
        place: number of the prompt in the file, from 0.
        left: the answer on the left.
        right: the answer on the right.
    """

    name: str
    place: int
    left: Answer
    right: Answer


@dataclass(frozen=True)
class Vote:
    """What a person said of a comparison.

    Attributes:
        comparison: its name.
        left: the answer on the left.
        right: the answer on the right.
        choice: one of `CHOICES`.
        edited: of an edit the new text.
    """

    comparison: str
    left: Answer
    right: Answer
    choice: str
    edited: str | None = None

    @classmethod
    def of(cls, row: Row) -> Vote:
        """The vote of a line.

        Raises:
            BadRow: it is none.
        """
        if row.get("vote") not in CHOICES:
            raise BadRow(f"`vote` is none of {', '.join(CHOICES)}")
        asked(row)
        left, right = (Answer.of(row.get(side), side) for side in SIDES)
        edited = answer_of(row.get("edited"), "edited") if str(row["vote"]).startswith("edit ") else None
        return cls(str(row.get("comparison")), left, right, row["vote"], edited)

    def line(self, prompt: Any) -> dict[str, Any]:
        """As a line of a file.

        Args:
            prompt: as `written` gives it.
        """
        row = {"comparison": self.comparison, "prompt": prompt, "left": self.left.line(), "right": self.right.line()}
        row["vote"] = self.choice
        return row if self.edited is None else {**row, "edited": self.edited}

    def preferred(self) -> tuple[str, str] | None:
        """The better text and the worse; None for a tie or a skip. An edit is better than what was edited."""
        sides = {"left": self.left.text, "right": self.right.text}
        if self.edited is not None:
            return self.edited, sides[self.choice.removeprefix("edit ")]
        if self.choice not in sides:
            return None
        return sides.pop(self.choice), next(iter(sides.values()))

    def winner(self) -> Answer | None:
        """The answer that goes on to the next comparison; None where the vote does not say."""
        return {"left": self.left, "right": self.right}.get(self.choice.removeprefix("edit "))


class Ballot:
    """All comparisons of a file, and the votes that stand.

    The answers of a prompt are compared like boxers: the first two, then the winner with the third, and so on, so that
    k answers take k - 1 votes. After a tie or a skip the earlier answer goes on.

    Args:
        file: the prompts and their answers; those with fewer than two are passed over.
        seed: decides which answer is on the left.
        votes: lines of earlier votes.
    """

    def __init__(self, file: Sequence[Answered], seed: int, votes: Sequence[Row] = ()) -> None:
        self.file, self.seed = list(file), seed
        self.total = sum(len(entry.answers) - 1 for entry in self.file if len(entry.answers) > 1)
        self._names = [_name_of(entry) for entry in self.file]
        self.votes: dict[str, Vote] = {}
        self.others: list[Row] = []
        for row in votes:
            self._take(row)

    def _take(self, row: Row) -> None:
        name = str(row.get("comparison"))
        if row.get("vote") == UNDO:
            self.votes.pop(name, None)
        else:
            self.votes.pop(name, None)
            self.votes[name] = Vote.of(row)

    def open(self) -> list[Comparison]:
        """What can be voted on now: of each prompt that is not through its next comparison."""
        return [found for place in range(len(self.file)) if (found := self._next(place)) is not None]

    def _next(self, place: int) -> Comparison | None:
        entry = self.file[place]
        if len(entry.answers) < 2:
            return None
        best = entry.answers[0]
        for number, other in enumerate(entry.answers[1:], 1):
            name = f"{self._names[place]}-{number}"
            vote = self.votes.get(name)
            if vote is None:
                swapped = random.Random(f"{self.seed}/{name}").random() < 0.5
                return Comparison(name, place, *((other, best) if swapped else (best, other)))
            best = vote.winner() or best
        return None

    def prompt(self, comparison: Comparison) -> Any:
        """The prompt of a comparison as its line has it."""
        return written(self.file[comparison.place].prompt, as_text=False)


def _name_of(entry: Answered) -> str:
    digest = hashlib.sha256()
    for text in [*(f"{m.role}:{m.content}" for m in entry.prompt), *(a.text for a in entry.answers)]:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
