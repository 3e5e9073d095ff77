"""The known shapes of preference datasets: the columns that each is known by, and how a row of it is read.

A reader gets the row and `draw(n)`, a seeded choice of 0..n-1 for this row, and returns prompt, chosen, rejected and
the scores of the two, if the dataset has scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qdpo.data.pairs import Message
from qdpo.data.pieces import (
    BadRow,
    Row,
    Tie,
    answer,
    message_of,
    messages_of,
    number,
    scores_of,
    split_conversations,
    system_of,
    text_of,
)

Draw = Callable[[int], int]
Parts = tuple[list[Message], list[Message], list[Message], tuple[float, float] | None]
"""Prompt, chosen, rejected, scores of the two."""


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    Attributes:
        name: the value of data.format.
        columns: what it is known by.
        known_by: says why a row has this shape, or None if it has not.
        read: turns a row into its parts.
    """

    name: str
    columns: tuple[str, ...]
    known_by: Callable[[Row], str | None]
    read: Callable[[Row, Draw], Parts]


def _is(row: Row, kind: type, *columns: str) -> bool:
    return all(isinstance(row.get(column), kind) for column in columns)


# ------------------------------------------------------------------------------- prompt, chosen, rejected (the usual)


def _pairs_known(row: Row) -> str | None:
    if {"prompt", "chosen", "rejected"} <= row.keys():
        kind = "message lists" if isinstance(row["chosen"], list) else "text"
        return f"columns prompt, chosen, rejected ({kind})"
    return None


def _read_pairs(row: Row, draw: Draw) -> Parts:
    chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
    shared: list[Message] = []
    if len(chosen) > 1 or len(rejected) > 1:
        # ultrafeedback_binarized repeats the prompt inside both conversations
        shared, chosen, rejected = split_conversations(chosen, rejected)
    value = row.get("prompt")
    if isinstance(value, list):
        # An empty list, like an empty text, is an empty prompt.
        prompt = messages_of(value, "prompt") if value else []
    else:
        text = text_of(row, "prompt", empty_ok=True)
        prompt = [Message("user", text)] if text else []
    if shared:
        said = {message.content.strip() for message in shared}
        if any(message.role == "user" and message.content.strip() not in said for message in prompt):
            raise BadRow("`prompt` is not the prompt that `chosen` and `rejected` begin with")
        prompt = shared
    if prompt and prompt[0].role != "system":
        prompt = system_of(row) + prompt
    return prompt, chosen, rejected, scores_of(row)


def _side(row: Row, column: str) -> list[Message]:
    value = row.get(column)
    if isinstance(value, list):
        return messages_of(value, column)
    if isinstance(value, Mapping):
        return [message_of(value, column)]
    return answer(text_of(row, column))


# --------------------------------------------------------------------------- chosen, rejected: the prompt is in both


def _implicit_known(row: Row) -> str | None:
    if {"chosen_messages", "rejected_messages"} <= row.keys():
        return "columns chosen_messages, rejected_messages with whole conversations"
    if "prompt" not in row and "conversations" not in row and _is(row, list, "chosen", "rejected"):
        return "columns chosen, rejected with whole conversations and no prompt"
    return None


def _read_implicit(row: Row, draw: Draw) -> Parts:
    suffix = "_messages" if "chosen_messages" in row else ""
    chosen, rejected = (messages_of(row.get(f"{side}{suffix}"), f"{side}{suffix}") for side in ("chosen", "rejected"))
    prompt, chosen, rejected = split_conversations(chosen, rejected)
    if prompt and prompt[0].role != "system":
        prompt = system_of(row) + prompt
    return prompt, chosen, rejected, scores_of(row)


TURN = re.compile(r"\n\n(Human|Assistant): ?")


def _transcripts_known(row: Row) -> str | None:
    sides = [row.get("chosen"), row.get("rejected")]
    if "prompt" not in row and any(isinstance(side, str) and side.startswith("\n\nHuman:") for side in sides):
        return "columns chosen, rejected with `Human:`/`Assistant:` transcripts"
    return None


def _transcript(row: Row, column: str) -> list[Message]:
    parts = TURN.split(text_of(row, column))
    if len(parts) < 3 or parts[0].strip():
        raise BadRow(f"`{column}` is not a transcript of `Human:` and `Assistant:` turns")
    turns: list[Message] = []
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        role, said = {"Human": "user", "Assistant": "assistant"}[speaker], said.strip()
        if turns and turns[-1].role == role:
            # hh-rlhf has a few speakers who go on in a second paragraph under their own name
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{said}".strip())
        else:
            turns.append(Message(role, said))
    if any(not turn.content for turn in turns):
        raise BadRow(f"`{column}` has an empty turn")
    return turns


def _read_transcripts(row: Row, draw: Draw) -> Parts:
    return (*split_conversations(_transcript(row, "chosen"), _transcript(row, "rejected")), scores_of(row))


# -------------------------------------------------------------------------------------- a question under another name


def _orca_known(row: Row) -> str | None:
    return "columns question, chosen, rejected" if {"question", "chosen", "rejected"} <= row.keys() else None


def _read_orca(row: Row, draw: Draw) -> Parts:
    prompt = [*system_of(row), Message("user", text_of(row, "question"))]
    # Llama's answers, the rejected ones, begin with a space that would give them away.
    chosen, rejected = (answer(text_of(row, side).strip()) for side in ("chosen", "rejected"))
    return prompt, chosen, rejected, scores_of(row)


def _binarized_known(row: Row) -> str | None:
    if {"instruction", "chosen_response", "rejected_response"} <= row.keys():
        return "columns instruction, chosen_response, rejected_response"
    return None


def _read_binarized(row: Row, draw: Draw) -> Parts:
    prompt = [*system_of(row), Message("user", text_of(row, "instruction"))]
    chosen, rejected = (answer(text_of(row, f"{side}_response")) for side in ("chosen", "rejected"))
    return prompt, chosen, rejected, scores_of(row)


def _alpaca_known(row: Row) -> str | None:
    if {"instruction", "chosen", "rejected"} <= row.keys():
        return "columns instruction, chosen, rejected" + (", input" if "input" in row else "")
    return None


def _read_alpaca(row: Row, draw: Draw) -> Parts:
    question = text_of(row, "instruction")
    if row.get("input"):
        question = f"{question}\n{text_of(row, 'input')}"
    prompt = [*system_of(row), Message("user", question)]
    return prompt, _side(row, "chosen"), _side(row, "rejected"), scores_of(row)


def _llama_factory_known(row: Row) -> str | None:
    if {"conversations", "chosen", "rejected"} <= row.keys():
        return "columns conversations, chosen, rejected with {from, value}"
    return None


def _read_llama_factory(row: Row, draw: Draw) -> Parts:
    prompt = messages_of(row["conversations"], "conversations")
    if prompt[0].role != "system":
        prompt = system_of(row) + prompt
    return prompt, _side(row, "chosen"), _side(row, "rejected"), scores_of(row)


# --------------------------------------------------------------------------------------------- pairs that are made here


def _winogrande_known(row: Row) -> str | None:
    if {"sentence", "option1", "option2", "answer"} <= row.keys():
        return "columns sentence (with `_`), option1, option2, answer"
    return None


def _read_winogrande(row: Row, draw: Draw) -> Parts:
    sentence = text_of(row, "sentence")
    if sentence.count("_") != 1:
        raise BadRow(f"`sentence` has {sentence.count('_')} gaps `_`, expected 1")
    right = str(row.get("answer"))
    if right not in ("1", "2"):
        raise BadRow(f"`answer` is {row.get('answer')!r}, expected 1 or 2")
    options = [text_of(row, "option1").strip(), text_of(row, "option2").strip()]
    before, after = sentence.split("_")
    completions = [answer(option + after.rstrip()) for option in options]
    if right == "2":
        completions.reverse()
    prompt = [Message("user", before.strip())] if before.strip() else []
    return prompt, completions[0], completions[1], None


def _ultrafeedback_known(row: Row) -> str | None:
    return "columns instruction, completions (scored answers)" if {"instruction", "completions"} <= row.keys() else None


def _read_ultrafeedback(row: Row, draw: Draw) -> Parts:
    """As Zephyr did: the best answer against one of the others, drawn at random (arXiv 2310.16944, section 3)."""
    prompt = [Message("user", text_of(row, "instruction"))]
    completions = row.get("completions")
    if not isinstance(completions, list):
        raise BadRow(f"`completions` is {type(completions).__name__}, expected a list of answers")
    scored = []
    for item in completions:
        score = _overall(item) if isinstance(item, Mapping) else None
        if score is not None and isinstance(item.get("response"), str) and item["response"].strip():
            scored.append((score, text_of(item, "response")))
    if len(scored) < 2:
        raise BadRow("fewer than two scored `completions`")
    best = max(range(len(scored)), key=lambda i: scored[i][0])
    chosen = scored.pop(best)
    rejected = scored[draw(len(scored))]
    return prompt, answer(chosen[1]), answer(rejected[1]), (chosen[0], rejected[0])


def _overall(item: Row) -> float | None:
    score = number(item.get("overall_score"))
    return score if score is not None else number(item.get("fine-grained_score"))


def _minimal_known(row: Row) -> str | None:
    return "columns sentence_good, sentence_bad" if {"sentence_good", "sentence_bad"} <= row.keys() else None


def _read_minimal(row: Row, draw: Draw) -> Parts:
    return [], answer(text_of(row, "sentence_good")), answer(text_of(row, "sentence_bad")), None


FORMATS = (
    Format("llama_factory", ("conversations", "chosen", "rejected"), _llama_factory_known, _read_llama_factory),
    Format("pairs", ("prompt", "chosen", "rejected"), _pairs_known, _read_pairs),
    Format("orca", ("question", "chosen", "rejected"), _orca_known, _read_orca),
    Format("winogrande", ("sentence", "option1", "option2", "answer"), _winogrande_known, _read_winogrande),
    Format("ultrafeedback", ("instruction", "completions"), _ultrafeedback_known, _read_ultrafeedback),
    Format(
        "ultrafeedback_binarized",
        ("instruction", "chosen_response", "rejected_response"),
        _binarized_known,
        _read_binarized,
    ),
    Format("alpaca", ("instruction", "chosen", "rejected"), _alpaca_known, _read_alpaca),
    Format("implicit_prompt", ("chosen", "rejected"), _implicit_known, _read_implicit),
    Format("transcripts", ("chosen", "rejected"), _transcripts_known, _read_transcripts),
    Format("minimal_pairs", ("sentence_good", "sentence_bad"), _minimal_known, _read_minimal),
)
BY_NAME = {format.name: format for format in FORMATS}

MADE_BY_SCORE = frozenset({"ultrafeedback"})
"""Formats whose chosen and rejected are decided here, by score."""

__all__ = ["BY_NAME", "FORMATS", "MADE_BY_SCORE", "BadRow", "Draw", "Format", "Parts", "Tie"]
