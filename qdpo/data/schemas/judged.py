"""Rows with two answers, none of which is called better, and somebody's verdict on them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from qdpo.data.messages import answer, asked_in, messages_of, split_conversations
from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Inherent, Row, Tie, number, text_of
from qdpo.data.schemas.shape import Draw, Format, Parts, first_of
from qdpo.foreign import shown

STEMS = ("conversation", "conv", "response", "answer", "output", "completion", "generation", "reply", "summary", "text")
MARKS = (("a", "b"), ("A", "B"), ("1", "2"), ("0", "1"), ("left", "right"))
"""How the two are told apart, behind `response_` or `response`."""
ASKED = ("prompt", "instruction", "question", "query", "input", "context", "orig_instruction")
A_NAME = re.compile(r"\s*\w{0,20}?(?:[ab012]|left|right)\s*", re.IGNORECASE)
"""What any name of an answer looks like."""
VERDICTS = (
    "winner",
    "better_response_id",
    "overall_preference",
    "preference_strength",
    "preference",
    "preferred",
    "label",
    "choice",
    "comparison",
    "better",
    "verdict",
    "orig_preference",
)
"""What the verdict is called."""
RATED = ("score", "rating", "reward")
"""What the scores of the two answers are called, where there is no verdict: `score_a` is that of `response_a`."""
STRENGTHS = frozenset({"overall_preference", "preference_strength"})
"""Verdicts from -3 (the first is much better) to 3 (the second is); 0 is a tie (HelpSteer 2 and 3)."""
COMPARED = re.compile(r"(\w+?)(>+|=+|<+)(\w+)")
"""A verdict that names both answers: `A>B`, `A>>B`, `B=A`."""
BOTH = ("bothbad", "both_bad", "bothgood", "both_good")
TIES = frozenset(
    {
        *("tie", "both", "none", "neither", "equal", "same", "draw", "="),
        *(f"{before}{both}{after}" for before, after in (("", ""), ("tie(", ")"), ("tie_", "")) for both in BOTH),
    }
)


def sides_of(row: Row) -> tuple[str, str, tuple[str, str]] | None:
    """The columns of two answers of which none is called better, and how they are told apart; None without them."""
    for stem in (*STEMS, *(f"orig_{stem}" for stem in STEMS)):
        for marks in MARKS:
            for between in ("_", "", "-"):
                first, second = (f"{stem}{between}{mark}" for mark in marks)
                if first in row and second in row:
                    return first, second, marks
    return None


def _annotators(row: Row) -> list[str]:
    return [column for column in row if re.fullmatch(r"annotator_?\d+", column)]


def _known(row: Row) -> str | None:
    sides = sides_of(row)
    if sides is None:
        return None
    asked = first_of(row, ASKED)
    talks = all(isinstance(row[side], list) for side in sides[:2])
    if asked is None and not talks:
        return None
    verdict = _verdict_columns(row, sides[2])
    if not verdict:
        return None
    return f"columns {', '.join([*([asked] if asked else []), *sides[:2], *verdict[:3]])}"


def _verdict_columns(row: Row, marks: tuple[str, str]) -> list[str]:
    if "winner_model_a" in row and "winner_model_b" in row:
        return ["winner_model_a", "winner_model_b"]
    column = first_of(row, VERDICTS)
    return [column] if column else _annotators(row) or _scores(row, marks)


def _scores(row: Row, marks: tuple[str, str]) -> list[str]:
    """The columns with a score for each of the two answers that are told apart by these marks."""
    pairs = ([f"{stem}_{mark}" for mark in marks] for stem in RATED)
    return next((pair for pair in pairs if row.keys() >= set(pair)), [])


def names_an_answer(row: Row, value: Any) -> bool:
    """Whether a value is no answer, but says which of two in other columns is meant."""
    sides = sides_of(row) if isinstance(value, str) and A_NAME.fullmatch(value) else None
    return sides is not None and _place(value.strip().lower(), sides[:2], sides[2]) is not None


def _counted_otherwise(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Verdicts of 0 and 1 on answers 1 and 2, or of 1 and 2 on answers 0 and 1: is 1 the first or the second?"""
    for counted, marks in (({0, 1}, ("1", "2")), ({1, 2}, ("0", "1"))):
        judged = [row for row in rows if (sides := sides_of(row)) and sides[2] == marks]
        column = first_of(judged[0], VERDICTS) if judged else None
        if column and column not in STRENGTHS and {number(row.get(column)) for row in judged} == counted:
            low, high = sorted(counted)
            return (
                f"`{column}` is {low} or {high} and the answers are called {' and '.join(marks)}: 1 may be either",
                f"write {marks[0]}, {marks[1]} or tie in `{column}`",
            )
    return None


def winner(value: Any, sides: tuple[str, str], marks: tuple[str, str], column: str) -> int | None:
    """Which of two answers a verdict prefers: 0, 1, or None for a tie.

    Args:
        value: the verdict.
        sides: the columns of the answers, each of which the verdict may name.
        marks: how they are told apart: the verdict may be such a mark, also behind `model_` or `response_`, or the
            letter of its place.
        column: of the verdict, for the message.

    Raises:
        BadRow: it names neither.
    """
    if column in STRENGTHS and (strength := number(value)) is not None:
        return None if strength == 0 else int(strength > 0)
    if isinstance(value, bool) or value is None:
        said = ""
    else:
        plain = number(value)
        if plain is not None and marks == ("1", "2") and 1 < plain < 2:
            # AlpacaEval: how likely the second is the better one, counted from 1
            return None if plain == 1.5 else int(plain > 1.5)
        said = str(int(plain)) if plain is not None and plain == int(plain) else str(value).strip()
    low = said.lower().replace(" ", "").strip("[]")
    if low in TIES:
        return None
    if found := COMPARED.fullmatch(low):
        first, sign, second = found.groups()
        places = [_place(name, sides, marks) for name in (first, second)]
        if set(places) == {0, 1}:
            return None if sign[0] == "=" else places[sign[0] == "<"]
    elif (place := _place(low, sides, marks)) is not None:
        return place
    raise BadRow(
        f"`{column}` names neither of the answers `{sides[0]}` and `{sides[1]}`",
        f"write {marks[0]} or {marks[1]}, or tie",
        column,
        shown(value),
    )


NAMED = ("", "model", "response", "assistant", "answer", "output", "option")
"""What may stand before the mark of an answer."""


def _place(name: str, sides: Sequence[str], marks: Sequence[str]) -> int | None:
    """Which answer a name names: by its column, its mark, or the side and the letter of its place."""
    for place, (side, mark) in enumerate(zip(sides, marks, strict=True)):
        ends = {mark.lower(), "ab"[place]}
        names = {f"{stem}{between}{end}" for stem in NAMED for between in ("", "_") for end in ends}
        if name in {*names, side.lower(), ("left", "right")[place]}:
            return place
    return None


def _verdict(row: Row, sides: tuple[str, str], marks: tuple[str, str]) -> int | None:
    columns = _verdict_columns(row, marks)
    if columns[:1] == ["winner_model_a"]:
        won = [number(row.get(column)) == 1 for column in columns]
        return None if won[0] == won[1] else won.index(True)
    if columns and columns == _annotators(row):
        votes = Counter(_annotated(row[column], sides, marks, column) for column in columns if row[column] is not None)
        return None if votes[0] == votes[1] else int(votes[1] > votes[0])
    if len(columns) == 2 and columns == _scores(row, marks):
        scores = _scored(row, marks)
        if scores is None:
            raise BadRow("the answers have no score each", "write two numbers", columns[0])
        return None if scores[0] == scores[1] else int(scores[1] > scores[0])
    if not columns:
        raise BadRow("no verdict", f"add the column `{VERDICTS[0]}`", VERDICTS[0])
    value = row[columns[0]]
    if isinstance(value, str) and (models := [row.get(f"model_{mark}") for mark in marks]).count(value) == 1:
        return models.index(value)
    return winner(value, sides, marks, columns[0])


def _scored(row: Row, marks: tuple[str, str]) -> tuple[float, float] | None:
    first, second = [number(row[column]) for column in _scores(row, marks)] or (None, None)
    return None if first is None or second is None else (first, second)


def _annotated(value: Any, sides: tuple[str, str], marks: tuple[str, str], column: str) -> int | None:
    # PandaLM's annotators write 0 for a tie; elsewhere 0 may be the first answer as well
    return None if number(value) == 0 and marks == ("1", "2") else winner(value, sides, marks, column)


def ordered(sides: Sequence[list[Message]], won: int | None) -> tuple[list[Message], list[Message]]:
    """Chosen and rejected, of the two answers and the place of the better one.

    Raises:
        Tie: neither is better.
    """
    if won is None:
        raise Tie("the verdict is a tie", "none is needed: nothing is preferred")
    return sides[won], sides[1 - won]


def _texts(value: Any) -> list[str] | None:
    """A list of texts, also written as JSON text (the arena's 55k)."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list) or not value or not all(text is None or isinstance(text, str) for text in value):
        return None
    if not all(isinstance(text, str) and text.strip() for text in value):
        raise BadRow("a turn of the conversation is null or empty", "write what was said, or take the row out")
    return value


def _read(row: Row, draw: Draw) -> Parts:
    found = sides_of(row)
    if found is None:
        raise BadRow("no two answers", "write the columns that the other rows have")
    first, second, marks = found
    won = _verdict(row, (first, second), marks)
    asked = first_of(row, ASKED)
    if isinstance(row[first], list) and isinstance(row[second], list) and _texts(row[first]) is None:
        prompt, chosen, rejected, scores = _conversations(row, first, second, won)
        return prompt if prompt or asked is None else asked_in(row, asked), chosen, rejected, scores
    if asked is None:
        raise BadRow("no question", f"add the column `{ASKED[0]}`", ASKED[0])
    if turns := _texts(row[asked]):
        sides = [_texts(row[column]) for column in (first, second)]
        if sides[0] and sides[1]:
            return _by_turns([turns, *filter(None, sides)], won)
    chosen, rejected = ordered([answer(text_of(row, column)) for column in (first, second)], won)
    scores = _scored(row, marks)
    return asked_in(row, asked), chosen, rejected, scores[::-1] if scores and won else scores


def _conversations(row: Row, first: str, second: str, won: int | None) -> Parts:
    talks = [messages_of(row[column], column) for column in (first, second)]
    turn = number(row.get("turn"))
    if row.get("question_id") is not None and turn is not None and "judge" in row:
        # MT-Bench judges the answer of one turn; the conversations go on in any case
        talks = [_until(talk, int(turn)) for talk in talks]
    return _parted(talks, won, f"{first}, {second}")


def _until(talk: list[Message], turn: int) -> list[Message]:
    """A conversation up to the answer of a turn, counted from 1."""
    answers = [place for place, message in enumerate(talk) if message.role == "assistant"]
    return talk[: answers[turn - 1] + 1] if 0 < turn <= len(answers) else talk


def _by_turns(lists: list[list[str]], won: int | None) -> Parts:
    asked, *answers = lists
    sides = [[message for turn in zip(asked, said, strict=False) for message in _turn(*turn)] for said in answers]
    return _parted(sides, won, "response_a, response_b")


def _parted(sides: list[list[Message]], won: int | None, columns: str) -> Parts:
    """Prompt and answers of two whole conversations; none where they differ before their last answers."""
    prompt, chosen, rejected = split_conversations(*ordered(sides, won))
    if len(chosen) > 1 or len(rejected) > 1:
        raise Inherent(
            "the two conversations differ before their last answer: the verdict is on more than one answer",
            "none is needed: a pair has one prompt",
            columns,
        )
    return prompt, chosen, rejected, None


def _turn(question: str, said: str) -> tuple[Message, Message]:
    return Message("user", text_of({"prompt": question}, "prompt")), Message("assistant", said)


def _read_shp(row: Row, draw: Draw) -> Parts:
    """Reddit's answers: `labels` is 1 where the first has more votes (Stanford Human Preferences)."""
    label = number(row.get("labels"))
    if label not in (0, 1):
        raise BadRow("`labels` is neither 0 nor 1", "1 prefers human_ref_A", "labels")
    texts = [answer(text_of(row, f"human_ref_{side}")) for side in "AB"]
    chosen, rejected = ordered(texts, 0 if label else 1)
    scores = [number(row.get(f"score_{side}")) for side in "AB"]
    first, second = scores
    both = None if first is None or second is None else (first, second) if label else (second, first)
    return [Message("user", text_of(row, "history"))], chosen, rejected, both


JUDGED_FORMATS = (
    Format(
        "shp",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        _read_shp,
        "stanfordnlp/SHP, SHP-2",
    ),
    Format(
        "judged",
        (),
        _read,
        "Chatbot Arena (conversations, 55k, 100k, 140k), MT-Bench human judgments, PKU-SafeRLHF (the better answer), "
        "HelpSteer2's preferences, HelpSteer3, LLMBar, PandaLM (its annotators' majority), AlpacaFarm, "
        "AlpacaEval, JudgeBench, Preference-Collection, Label Studio's JSON-MIN",
        "a question, two answers told apart as a and b, 1 and 2 or 0 and 1 (response_a, output_1, ...), and a verdict: "
        + ", ".join(VERDICTS)
        + "; or a score of each: "
        + ", ".join(f"{stem}_a" for stem in RATED),
        known=_known,
        doubt=_counted_otherwise,
    ),
)
"""The formats of this file, the more specific one of two first."""
