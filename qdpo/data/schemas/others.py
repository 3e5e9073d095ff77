"""Rows that are no preferences: named as what they are, with what can be done about them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from qdpo.data.pieces import Row

ASKED = frozenset({"prompt", "question", "instruction", "query", "input", "messages", "conversations", "conversation"})
ANSWERED = frozenset({"completion", "response", "answer", "output", "completions", "text"})
RATED = frozenset({"score", "rating", "reward", "stars"})
PICTURES = frozenset({"image", "images", "video", "videos", "audio"})
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
        return "these are votes", f"{made}"
    if any(column.startswith(SIDES) for column in columns):
        return None  # pairs, by other names
    if "answers" in columns and not columns & RATED:
        return "these are answers that nobody has compared yet", f"qdpo pairs vote {file}"
    if columns & PICTURES:
        return "these are rows with pictures, video or sound", "qdpo learns from text alone: take a dataset of text"
    answered = bool(columns & ANSWERED) or bool(columns & {"messages", "conversations"})
    if _is_steps(rows):
        return (
            "these are single steps of reasoning, each labelled (for a process reward model)",
            "two answers to one prompt are needed: prompt, chosen, rejected",
        )
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
    texts = {str(column) for row in rows for column, value in row.items() if isinstance(value, str)}
    if columns & ASKED and texts <= ASKED:
        return "these are prompts without answers", f"qdpo pairs generate --prompts {file} writes answers to compare"
    return None


def _is_steps(rows: Sequence[Row]) -> bool:
    def lists(value: Any) -> bool:
        return isinstance(value, list) and not any(isinstance(item, Mapping) for item in value)

    return any(lists(row.get("completions")) and lists(row.get("labels")) for row in rows)
