"""Rows that are no preferences: named as what they are, with what can be done about them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from qdpo.data.pieces import Row, quoted
from qdpo.data.schemas.judged import ASKED as ASKED_OF_TWO
from qdpo.data.schemas.judged import VERDICTS, names_an_answer, sides_of
from qdpo.data.schemas.scored import LISTED
from qdpo.data.schemas.shape import first_of

ASKED = frozenset({"prompt", "question", "instruction", "query", "input", "messages", "conversations", "conversation"})
ANSWERED = frozenset({"completion", "response", "answer", "output", "completions", "text"})
RATED = frozenset({"score", "rating", "reward", "stars"})
PICTURES = frozenset({"image", "images", "video", "videos", "audio"})
PAIRS_ARE = "two answers to one prompt are needed: prompt, chosen, rejected"
SIDES = ("chosen", "rejected", "accepted", "preferred")


def what_else(rows: Sequence[Row], source: str) -> tuple[str, str] | None:
    """What rows are that no format of preferences fits, and what to do; None where that is not known either.

    Args:
        rows: a few rows; not empty.
        source: the dataset's name, for the command that makes pairs of it.
    """
    columns = frozenset(str(column) for row in rows for column in row)
    file = shlex.quote(source)
    made = f"qdpo pairs from-ratings {file} --out pairs.jsonl makes pairs of them"
    if {"comparison", "vote"} <= columns:
        return "these are votes", made
    if any(map(sides_of, rows)) and not any(column.startswith("rejected") for column in columns):
        return _verdict(rows)
    if any(column.startswith(SIDES) for column in columns):
        return None  # pairs, by other names
    if any(isinstance(row.get("answers"), list) for row in rows) and not columns & RATED:
        return "these are answers that nobody has compared yet", f"qdpo pairs vote {file}"
    if columns & PICTURES:
        return "these are rows with pictures, video or sound", "qdpo learns from text alone: take a dataset of text"
    answered = bool(columns & ANSWERED) or bool(columns & {"messages", "conversations"})
    if _is_steps(rows):
        return (
            "these are single steps of reasoning, each labelled (for a process reward model)",
            PAIRS_ARE,
        )
    listed = next((name for name in LISTED if any(isinstance(row.get(name), list) for row in rows)), None)
    if listed and columns & ASKED:
        return f"these are answers (`{listed}`) of which none is said to be better", (
            f"add a column `scores` with a list of numbers, one for each of `{listed}`"
        )
    if "reward_model" in columns and columns & ASKED:
        return "these are prompts with what checks an answer (for RL)", (
            f"qdpo pairs generate --prompts {file} writes answers to compare"
        )
    if "label" in columns and answered and not columns & ASKED:
        return "these are texts with a label (for a classifier)", PAIRS_ARE
    if "label" in columns and answered:
        return "these are single answers with a label (KTO), ratings of which none is compared with another", (
            f"where a prompt has both labels, {made}; else qdpo pairs generate writes further answers"
        )
    if columns & RATED and answered:
        return "these are single answers with a score, ratings of which none is compared with another", made
    if "edited" in columns:
        return "these are ratings (edits)", made
    if (columns & ASKED and answered) or columns in (frozenset({"text"}), frozenset({"messages"})):
        return "these are single answers (for SFT), without a worse one", (
            f"qdpo pairs generate --prompts {file} writes answers to compare with"
        )
    texts = {str(column) for row in rows for column, value in row.items() if isinstance(value, str | list | Mapping)}
    if columns & ASKED and texts <= ASKED:
        return "these are prompts without answers", f"qdpo pairs generate --prompts {file} writes answers to compare"
    return None


def _verdict(rows: Sequence[Row]) -> tuple[str, str] | None:
    """What two answers lack: a verdict, a question, or both; None where some rows have the one, some the other."""
    lacks = {}
    if not any(first_of(row, VERDICTS) for row in rows):
        says = next((column for row in rows for column, value in row.items() if names_an_answer(row, value)), None)
        lacks[VERDICTS[0]] = "which of them is better", quoted(says) if says else "YOUR_COLUMN"
    talk = any(isinstance(row[side], list) for row in rows for side in (sides_of(row) or ())[:2])
    if not talk and not any(first_of(row, ASKED_OF_TWO) for row in rows):
        lacks["prompt"] = "what was asked", "YOUR_COLUMN"
    if not lacks:
        return None
    mapping = ", ".join(f"{ours}: {theirs}" for ours, (_, theirs) in lacks.items())
    missing = " and ".join(what for what, _ in lacks.values())
    return f"these are two answers a row, and no column that is read says {missing}", (
        f"name the columns that do: `data.columns={{{mapping}}}`; a verdict may say a, b or tie"
    )


def _is_steps(rows: Sequence[Row]) -> bool:
    def lists(value: Any) -> bool:
        return isinstance(value, list) and not any(isinstance(item, Mapping) for item in value)

    return any(lists(row.get("completions")) and lists(row.get("labels")) for row in rows)
