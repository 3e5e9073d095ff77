"""A vote on two answers to one prompt: as a line of a file, as what it prefers, and which comparison comes next."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qdpo.data.pieces import BadRow, Row
from qdpo.pairing.answers import Answer, Answered
from qdpo.pairing.pieces import Prompt, answer_of, asked, written

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
        prompt: what was asked.
        left: the answer on the left.
        right: the answer on the right.
        choice: one of `CHOICES`.
        edited: of an edit the new text.
    """

    comparison: str
    prompt: Prompt
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
        choice = row.get("vote")
        if choice not in CHOICES:
            raise BadRow(f"`vote` is none of {', '.join(CHOICES)}", field="vote")
        left, right = (Answer.of(row.get(side), side) for side in SIDES)
        edited = answer_of(row.get("edited"), "edited") if choice.startswith("edit ") else None
        return cls(str(row.get("comparison")), asked(row)[0], left, right, choice, edited)

    def line(self) -> dict[str, Any]:
        """As a line of a file."""
        row = {"comparison": self.comparison, "prompt": written(self.prompt, as_text=False)}
        row |= {"left": self.left.line(), "right": self.right.line(), "vote": self.choice}
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

    Attributes:
        votes: those that stand, by the comparison's name, in the order in which they were given.
        total: comparisons of the file.
    """

    def __init__(self, file: Sequence[Answered], seed: int) -> None:
        self.file, self.seed = [entry for entry in file if len(entry.answers) > 1], seed
        self.total = sum(len(entry.answers) - 1 for entry in self.file)
        self.votes: dict[str, Vote] = {}
        self._names = [_name_of(entry) for entry in self.file]

    def take(self, row: Row) -> None:
        """Count a line of the file of votes.

        Raises:
            BadRow: it is none.
        """
        name = str(row.get("comparison"))
        vote = None if row.get("vote") == UNDO else Vote.of(row)
        self.votes.pop(name, None)
        if vote is not None:
            self.votes[name] = vote

    @property
    def last(self) -> str | None:
        """The comparison that was voted on last; None where none was."""
        return next(reversed(self.votes), None)

    @property
    def done(self) -> int:
        """Comparisons of the file that are voted on."""
        return sum(
            f"{name}-{number}" in self.votes
            for name, entry in zip(self._names, self.file, strict=True)
            for number in range(1, len(entry.answers))
        )

    def open(self, first: int = 0) -> Iterator[Comparison]:
        """What can be voted on now: of each prompt the next comparison, from a prompt on and around."""
        for place in range(len(self.file)):
            found = self._next((first + place) % len(self.file))
            if found is not None:
                yield found

    def find(self, name: str) -> Comparison | None:
        """A comparison that can be voted on now, by its name."""
        place = next((place for place, own in enumerate(self._names) if name.startswith(f"{own}-")), None)
        found = None if place is None else self._next(place)
        return found if found is not None and found.name == name else None

    def _next(self, place: int) -> Comparison | None:
        best, *others = self.file[place].answers
        for number, other in enumerate(others, 1):
            name = f"{self._names[place]}-{number}"
            vote = self.votes.get(name)
            if vote is None:
                swapped = random.Random(f"{self.seed}/{name}").random() < 0.5
                return Comparison(name, place, *((other, best) if swapped else (best, other)))
            best = vote.winner() or best
        return None

    def wins(self) -> Counter[str]:
        """How often an answer of each writer was preferred to one of another's, and how often neither was (`tie`)."""
        won: Counter[str] = Counter()
        for vote in self.votes.values():
            if vote.left.by != vote.right.by and vote.left.by and vote.right.by and vote.edited is None:
                winner = vote.winner()
                if winner is not None or vote.choice == "tie":
                    won[winner.by if winner else "tie"] += 1
        return won


def _name_of(entry: Answered) -> str:
    digest = hashlib.sha256()
    for text in [*(f"{m.role}:{m.content}" for m in entry.prompt), *(a.text for a in entry.answers)]:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
