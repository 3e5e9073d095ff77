"""How the rows of one source become pairs: by their format, and by what all of them have around the text itself."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from qdpo.data.messages import IN_ROWS, SAID_IN, check_turns, refuse_unread
from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import BadRow, Row, Tie, same_answers
from qdpo.data.schemas.formats import keeps_ties, names_of, recognise, rename
from qdpo.data.schemas.templated import family_in, family_of, read_back, with_mark, without_end
from qdpo.data.schemas.wrapped import messages_in, unwrapped, wrapped_columns
from qdpo.errors import DataError
from qdpo.foreign import shown

REPEATED = 20
"""Characters of a prompt below which answers may begin with the same words by themselves."""
OF_MESSAGES = frozenset({"role", "from", *SAID_IN})


class RowReader:
    """Reads the rows of one source.

    What is around the text is found by the first rows, and holds for all: columns that hold messages as text, prompts
    that a chat template was written around, answers that repeat their prompt.

    Args:
        rows: the first rows, objects all of them; not empty.
        source: the dataset's name, for messages.
        wanted: data.format.
        columns: data.columns, ours to theirs.
        ignore: columns, and keys of messages, that are passed over.
        plain: whether text is written as it is: then a prompt with turns inside is one text.
        special_text: data.special_text: with `split`, one prompt with turns inside among others is a text too.
        system: system message for rows that bring none; None adds none, an empty text an empty one.
        seed: decides which answer is the rejected one where several could be.
        ties: data.ties.

    Attributes:
        format: how rows are read.
        reason: what it was known by, and what is around the text.
        unread: in how many rows each column has something that was not read, in the order of the columns.

    Raises:
        DataError: no known format fits.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        source: str,
        wanted: str = "auto",
        *,
        columns: Mapping[str, str] | None = None,
        ignore: Collection[str] = (),
        plain: bool = False,
        special_text: str = "error",
        system: str | None = None,
        seed: int = 0,
        ties: str = "auto",
    ) -> None:
        self.columns, self.ignore, self.system, self.seed = columns or {}, frozenset(ignore), system, seed
        self.refuses_turns = not plain and special_text != "split"
        self.unread: Counter[str] = Counter()
        self.wrapped: frozenset[str] = frozenset()
        self.empty: frozenset[str] = frozenset()
        self.family = None
        self.repeats = False
        head = [self._renamed(row) for row in rows]
        self.wrapped = wrapped_columns(head)
        head = [row for row in map(self._try_unwrapped, head) if row is not None] or head
        # Parquet gives every row the columns of all: what is null in all rows says nothing
        said_in = {column for row in head for column, said in row.items() if said is not None}
        if wanted == "auto":
            self.empty = frozenset(column for row in head for column in row if column not in said_in)
        try:
            self.format, self.reason = recognise([self._without_empty(row) for row in head], wanted, source)
        except DataError:
            self.empty = frozenset()
            self.format, self.reason = recognise(head, wanted, source)
        head = [self._without_empty(row) for row in head]
        self.keeps_ties = keeps_ties(ties, self.format)
        said = list(self._said(head))
        self.repeats = bool(said) and all(_repeats(*texts) for texts in said)
        if not plain and said:
            self.family = family_of([prompt for prompt, *_ in said])
        found = [
            (bool(self.wrapped), f"messages written as text in {names_of(sorted(self.wrapped))}"),
            (self.repeats, "the answers repeat the prompt, which is taken off"),
            (
                self.family is not None,
                f"prompts written in the form of {self.family and self.family.name}, read as turns",
            ),
        ]
        self.reason = "; ".join([self.reason, *(what for so, what in found if so)])

    def items(self, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """What is read of numbered rows: each with its number, columns renamed; what is no object stays as it is, and
        what cannot be read back is a `BadRow`."""
        return self.format.items((number, self._prepared(row)) for number, row in rows)

    def pair(self, row: Row, place: int, number: int | None = None) -> Pair:
        """One of the `items` as a `Pair`.

        Args:
            row: the item.
            place: among the items of its source, from 0; decides what is drawn.
            number: what the pair is named by; its place where there is none.

        Raises:
            Tie: both answers have the same score, and ties are left out.
            BadRow: with the reason.
        """
        watched = _Watched(row)
        refuse_unread(row, IN_ROWS)
        prompt, chosen, rejected, scores = self.format.read(watched, partial(_draw, self.seed, place))
        self._count_unread(watched)
        prompt, chosen, rejected = self._without_wrapping(prompt, chosen, rejected)
        check_turns(prompt, chosen, rejected)
        if self.refuses_turns:
            _refuse_wrapped((*prompt, *chosen, *rejected))
        if chosen == rejected:
            raise same_answers()
        if scores and scores[0] == scores[1] and not self.keeps_ties:
            raise Tie(
                "chosen and rejected have the same score",
                "none is needed: nothing is preferred, see data.ties",
                "scores",
            )
        if self.system is not None and prompt and prompt[0].role != "system":
            prompt = [Message("system", self.system), *prompt]
        return Pair(place if number is None else number, tuple(prompt), tuple(chosen), tuple(rejected), scores)

    def prompt(self, row: Row) -> list[Message]:
        """The prompt of one of the `items` alone, as the row has it; empty where it has none.

        Raises:
            BadRow: with the reason.
        """
        prompt, chosen, rejected, _ = self.format.read(row, lambda n: 0)
        return self._without_wrapping(prompt, chosen, rejected)[0]

    def _renamed(self, row: Row) -> Row:
        row = rename(row, self.columns)
        return _ignoring(row, self.ignore) if self.ignore else row

    def _without_empty(self, row: Row) -> Row:
        return {c: said for c, said in row.items() if said is not None or c not in self.empty} if self.empty else row

    def _prepared(self, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        renamed = self._without_empty(self._renamed(row))
        if not self.wrapped:
            return renamed
        try:
            return unwrapped(renamed, self.wrapped)
        except BadRow as bad:
            return bad

    def _try_unwrapped(self, row: Row) -> Row | None:
        try:
            return unwrapped(row, self.wrapped) if self.wrapped else row
        except BadRow:
            return None

    def _said(self, head: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
        """Prompt and both answers of the first rows whose prompt is a text alone."""
        for place, (_, row) in enumerate(self.format.items(enumerate(head))):
            if isinstance(row, BadRow):
                continue
            try:
                prompt, chosen, rejected, _ = self.format.read(row, partial(_draw, self.seed, place))
            except (BadRow, AttributeError):
                continue
            turns = prompt[1:] if prompt and prompt[0].role == "system" else prompt
            if len(turns) == 1 and chosen and rejected:
                asked, sides = with_mark(turns[0].content, [chosen[0].content, rejected[0].content])
                yield asked, sides[0], sides[1]

    def _without_wrapping(
        self, prompt: list[Message], chosen: list[Message], rejected: list[Message]
    ) -> tuple[list[Message], list[Message], list[Message]]:
        system = prompt[:1] if prompt and prompt[0].role == "system" else []
        turns = prompt[len(system) :]
        if len(turns) != 1 or turns[0].role != "user" or not (len(chosen) == len(rejected) == 1):
            return prompt, chosen, rejected
        asked, said = turns[0].content, [chosen[0].content, rejected[0].content]
        sides = said
        if self.family:
            asked, sides = with_mark(asked, sides)
        if self.repeats and _repeats(asked, *sides):
            sides = [side[len(asked) :] for side in sides]
        if self.family and (back := read_back(asked, self.family)):
            if system and back.messages[0].role == "system":
                if system[0].content.strip() != back.messages[0].content:
                    raise BadRow(
                        "the row has a system message, and its prompt has another one written into it",
                        "take one of them out",
                        "prompt",
                    )
                system = []
            turns = back.messages
            sides = [back.begun + without_end(side, self.family) for side in sides]
            sides = [side.lstrip() for side in sides]
            if not all(sides):
                raise BadRow("an answer is empty", "write a text", "chosen, rejected")
        elif self.refuses_turns and (other := family_in(asked)):
            raise BadRow(
                f"the prompt is written in the form of {other.name}, with turns inside, and other rows are not",
                "write its turns as messages, or set data.special_text=split to take it as text",
                "prompt",
                shown(asked),
            )
        if sides != said:
            chosen, rejected = ([Message("assistant", side)] for side in sides)
        return [*system, *turns], chosen, rejected

    def _count_unread(self, row: _Watched) -> None:
        for column, value in row.items():
            if column not in row.seen:
                if value is not None and value not in ("", [], {}):
                    self.unread[column] += 1
            elif isinstance(value, list):
                items = [item for item in value if isinstance(item, Mapping) and not {"role", "from"}.isdisjoint(item)]
                others = {k for item in items for k, said in item.items() if k not in OF_MESSAGES and said is not None}
                self.unread.update(f"{column}: {key}" for key in sorted(map(str, others)))


def _refuse_wrapped(messages: Sequence[Message]) -> None:
    for message in messages:
        if messages_in(message.content) is not None:
            raise BadRow(
                "the row has a list of messages written as text where other rows have text",
                "write all rows alike, or set data.special_text=split to take it as text",
                example=shown(message.content),
            )


class _Watched(dict[str, Any]):
    """A row that remembers which of its columns were looked at."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a column, or `default`."""
        self.seen.add(key)
        return super().get(key, default)


def _ignoring(row: Row, ignore: frozenset[str]) -> Row:
    """A row without some columns, its messages without such keys."""

    def without(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: said for key, said in value.items() if key not in ignore}
        return [without(item) for item in value] if isinstance(value, list) else value

    return {column: without(value) for column, value in row.items() if column not in ignore}


def _repeats(prompt: str, chosen: str, rejected: str) -> bool:
    """Whether both answers begin with the prompt, and go on."""
    sides = (chosen, rejected)
    return len(prompt.strip()) >= REPEATED and all(s.startswith(prompt) and s[len(prompt) :].strip() for s in sides)


def _draw(seed: int, place: int, n: int) -> int:
    """A choice that depends on the seed and the row alone, whatever else was read."""
    return random.Random(f"{seed}/{place}").randrange(n)
