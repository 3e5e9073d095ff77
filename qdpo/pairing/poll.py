"""Voting on a file of answers: what is shown next, and every vote on the disk before anybody is told of it.

Beside the pairs, `OUT.votes.jsonl` holds every vote and every one that was taken back, in their order. It is what
counts; the pairs are made of it, and after each vote both are on the disk.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from qdpo import files
from qdpo.data.pieces import BadRow
from qdpo.errors import DataError, OutputError, UnavailableError, UsageError
from qdpo.grammar import agreed, counted
from qdpo.pairing.answers import Answered
from qdpo.pairing.journal import Journal
from qdpo.pairing.pairs_file import Preferred, lines_of, refuse_existing
from qdpo.pairing.votes import CHOICES, SIDES, UNDO, Ballot, Comparison, Vote

LOG = ".votes.jsonl"
WORDS = {
    "left": "left is better",
    "right": "right is better",
    "tie": "a tie",
    "skip": "skipped",
    "edit left": "left was edited",
    "edit right": "right was edited",
}


def log_of(out: Path) -> Path:
    """The file of the votes that a file of pairs is made of."""
    return out.with_name(f"{out.stem}{LOG}")


class Poll:
    """A file of answers that is voted on; `opened` makes one.

    Attributes:
        ballot: comparisons and votes.
        out: the file of pairs.
        pairs: how many it holds.
    """

    def __init__(self, ballot: Ballot, journal: Journal, out: Path) -> None:
        self.ballot, self.journal, self.out = ballot, journal, out
        self._one_at_a_time = threading.Lock()
        self._lines: list[str] = []

    @classmethod
    @contextlib.contextmanager
    def opened(cls, file: list[Answered], out: Path, seed: int) -> Iterator[Self]:
        """Begin to vote, or go on with the votes that there are.

        Args:
            file: prompts and answers.
            out: the file of pairs.
            seed: decides which answer is on the left.

        Raises:
            OutputError: `out` holds what is not from these votes.
            BusyError: another process votes on it.
            DataError: the file of votes is damaged.
        """
        if not log_of(out).exists():
            refuse_existing(out)
        ballot = Ballot(file, seed)
        with Journal.opened(log_of(out)) as journal:
            given = set()
            for number, row in enumerate(journal.rows, 1):
                try:
                    ballot.take(row)
                    given.add(None if row["vote"] == UNDO else Vote.of(row).preferred())
                except BadRow as bad:
                    raise DataError(f"{journal.path}:{number}: {bad}", "repair it, or choose another --out") from None
            _refuse_others(out, given)
            poll = cls(ballot, journal, out)
            poll._write()
            yield poll

    @property
    def pairs(self) -> int:
        """Pairs in the file."""
        return len(self._lines)

    def state(self, after: str | None = None) -> dict[str, Any]:
        """What the page shows.

        Args:
            after: a comparison that is put off; None shows the first that is open.
        """
        with self._one_at_a_time:
            found = self.ballot.find(after) if after else None
            return self._state(found.place + 1 if found else 0)

    def vote(self, name: str, choice: str, edited: str | None) -> dict[str, Any]:
        """Take a vote; it is on the disk when this returns.

        Args:
            name: of the comparison.
            choice: one of `CHOICES`.
            edited: of an edit the new text.

        Returns:
            The state after it.

        Raises:
            UsageError: it is no vote.
            UnavailableError: the comparison was voted on already, in another tab say.
            DiskError: it cannot be written, and does not count.
        """
        with self._one_at_a_time:
            comparison = self._open(name)
            vote = self._vote(comparison, choice, edited)
            self.journal.append([vote.line()])
            self.ballot.take(vote.line())
            self._write()
            return self._state(comparison.place, f"Saved: {WORDS[choice]}.")

    def undo(self, name: str) -> dict[str, Any]:
        """Take the last vote back, and show its comparison again.

        Args:
            name: of the comparison that the page takes for the last.

        Raises:
            UnavailableError: another one was the last.
            DiskError: it cannot be written, and the vote stands.
        """
        with self._one_at_a_time:
            if not name or name != self.ballot.last:
                raise UnavailableError("another vote was given meanwhile, in another tab say", "this is how things are")
            row = {"comparison": name, "vote": UNDO}
            self.journal.append([row])
            self.ballot.take(row)
            self._write()
            found = self.ballot.find(name)
            return self._state(found.place if found else 0, "Taken back.")

    def summary(self) -> list[str]:
        """What was voted, a sentence each."""
        ballot = self.ballot
        chosen = Counter(vote.choice for vote in ballot.votes.values())
        edits = sum(chosen[f"edit {side}"] for side in SIDES)
        said = [f"{ballot.done:,} of {counted(ballot.total, 'comparison')} voted on: {counted(self.pairs, 'pair')}"]
        said[0] += f" ({edits:,} of them {agreed(edits, 'an edit', 'edits')}), " if edits else ", "
        said[0] += f"{counted(chosen['tie'], 'tie')}, {chosen['skip']:,} skipped"
        if won := ballot.wins():
            counts = ", ".join(f"{by} {won[by]:,}" for by in sorted(set(won) - {"tie"}))
            said.append(f"preferred: {counts or 'none'}; ties {won['tie']:,}")
        return said

    def _open(self, name: str) -> Comparison:
        found = self.ballot.find(name)
        if found is None:
            raise UnavailableError("this comparison was voted on already, in another tab say", "here is the next one")
        return found

    def _vote(self, comparison: Comparison, choice: str, edited: str | None) -> Vote:
        if choice not in CHOICES:
            raise UsageError(f"a vote is one of {', '.join(CHOICES)}")
        prompt = self.ballot.file[comparison.place].prompt
        vote = Vote(comparison.name, prompt, comparison.left, comparison.right, choice, edited)
        if not choice.startswith("edit "):
            return vote if edited is None else self._vote(comparison, choice, None)
        before = {"left": comparison.left, "right": comparison.right}[choice.removeprefix("edit ")].text
        if edited is None or edited.strip() == before.strip():
            raise UsageError("The text is as it was: change it, or cancel.")
        try:
            return Vote.of(vote.line())
        except BadRow as bad:
            raise UsageError(f"This cannot be an answer: {bad}.") from None

    def _state(self, first: int, said: str = "") -> dict[str, Any]:
        ballot = self.ballot
        comparison = next(ballot.open(first), None)
        state: dict[str, Any] = {"said": said, "done": ballot.done, "total": ballot.total, "pairs": self.pairs}
        state |= {"last": ballot.last, "comparison": None}
        if comparison is not None:
            prompt = ballot.file[comparison.place].prompt
            state["comparison"] = {
                "name": comparison.name,
                "prompt": [{"role": message.role, "content": message.content} for message in prompt],
                "left": comparison.left.text,
                "right": comparison.right.text,
                "cut": [side for side in SIDES if not getattr(comparison, side).ended],
            }
        return state

    def _write(self) -> None:
        """Bring the file of pairs to what the votes say."""
        found = [
            Preferred(vote.prompt, *preferred)
            for vote in self.ballot.votes.values()
            if (preferred := vote.preferred()) is not None
        ]
        lines, before = lines_of(found), self._lines
        if before and lines[: len(before)] == before:
            if len(lines) > len(before):
                files.append(self.out, "".join(lines[len(before) :]))
        elif lines:
            files.atomic_write(self.out, "".join(lines))
        else:
            self.out.unlink(missing_ok=True)
        self._lines = lines


def _refuse_others(out: Path, given: set[tuple[str, str] | None]) -> None:
    """Refuse to replace pairs that no vote of the file gave: somebody has put them there."""
    if not out.exists():
        return
    others = []
    for number, line in enumerate(out.read_text("utf-8", "replace").splitlines(), 1):
        try:
            row = json.loads(line)
            own = (row["chosen"], row["rejected"]) in given
        except (ValueError, KeyError, TypeError):
            # a part of a line is what a kill leaves
            own = False
        if not own:
            others.append(number)
    if others and not (len(others) == 1 and not out.read_bytes().endswith(b"\n")):
        raise OutputError(
            f"{out} has {counted(len(others), 'line')} not from the votes in {log_of(out)} (first: line {others[0]})",
            "it would be written anew: move it away, or choose another --out",
        )
