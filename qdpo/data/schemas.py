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
    answer,
    message_of,
    messages_of,
    number,
    scores_of,
    split_conversations,
    system_of,
    text_of,
    type_in_words,
)

Draw = Callable[[int], int]
Parts = tuple[list[Message], list[Message], list[Message], tuple[float, float] | None]
"""Prompt, chosen, rejected, scores of the two."""


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    Attributes:
        name: the value of data.format.
        columns: the columns that it needs.
        read: turns a row into its parts.
        described: how the columns are named in the reason, where not by their names alone.
        known: decides in place of the columns; returns why a row has this shape, or None if it has not.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row, Draw], Parts]
    described: str | Callable[[Row], str] = ""
    known: Callable[[Row], str | None] | None = None

    def known_by(self, row: Row) -> str | None:
        """Why a row has this shape, or None if it has not."""
        if self.known is not None:
            return self.known(row)
        if not row.keys() >= set(self.columns):
            return None
        said = self.described(row) if callable(self.described) else self.described
        return f"columns {said or ', '.join(self.columns)}"


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
            raise BadRow(
                "`prompt` is not the prompt that `chosen` and `rejected` begin with",
                "make the three agree, or leave `prompt` out",
                "prompt",
            )
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


def _implicit_known(row: Row) -> str | None:
    if {"chosen_messages", "rejected_messages"} <= row.keys():
        return "columns chosen_messages, rejected_messages with whole conversations"
    whole = all(isinstance(row.get(side), list) for side in ("chosen", "rejected"))
    if whole and "prompt" not in row and "conversations" not in row:
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
        raise BadRow(
            f"`{column}` is not a transcript of `Human:` and `Assistant:` turns",
            "begin each turn with an empty line and `Human:` or `Assistant:`",
            column,
        )
    turns: list[Message] = []
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        role, said = {"Human": "user", "Assistant": "assistant"}[speaker], said.strip()
        if turns and turns[-1].role == role:
            # hh-rlhf has a few speakers who go on in a second paragraph under their own name
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{said}".strip())
        else:
            turns.append(Message(role, said))
    if any(not turn.content for turn in turns):
        raise BadRow(f"`{column}` has an empty turn", "write what was said, or leave the turn out", column)
    return turns


def _read_transcripts(row: Row, draw: Draw) -> Parts:
    return (*split_conversations(_transcript(row, "chosen"), _transcript(row, "rejected")), scores_of(row))


def _asked(row: Row, question: str) -> list[Message]:
    return [*system_of(row), Message("user", question)]


def _read_orca(row: Row, draw: Draw) -> Parts:
    # Llama's answers, the rejected ones, begin with a space that would give them away.
    chosen, rejected = (answer(text_of(row, side).strip()) for side in ("chosen", "rejected"))
    return _asked(row, text_of(row, "question")), chosen, rejected, scores_of(row)


def _read_binarized(row: Row, draw: Draw) -> Parts:
    prompt = _asked(row, text_of(row, "instruction"))
    chosen, rejected = (answer(text_of(row, f"{side}_response")) for side in ("chosen", "rejected"))
    return prompt, chosen, rejected, scores_of(row)


def _read_alpaca(row: Row, draw: Draw) -> Parts:
    question = text_of(row, "instruction")
    if row.get("input"):
        question = f"{question}\n{text_of(row, 'input')}"
    return _asked(row, question), _side(row, "chosen"), _side(row, "rejected"), scores_of(row)


def _read_llama_factory(row: Row, draw: Draw) -> Parts:
    prompt = messages_of(row["conversations"], "conversations")
    if prompt[0].role != "system":
        prompt = system_of(row) + prompt
    return prompt, _side(row, "chosen"), _side(row, "rejected"), scores_of(row)


def _read_winogrande(row: Row, draw: Draw) -> Parts:
    sentence = text_of(row, "sentence")
    if sentence.count("_") != 1:
        raise BadRow(f"`sentence` has {sentence.count('_')} gaps `_`, expected 1", "mark one gap", "sentence")
    right = str(row.get("answer"))
    if right not in ("1", "2"):
        raise BadRow("`answer` says of neither option that it is right, expected 1 or 2", "write 1 or 2", "answer")
    options = [text_of(row, "option1").strip(), text_of(row, "option2").strip()]
    before, after = sentence.split("_")
    completions = [answer(option + after.rstrip()) for option in options]
    if right == "2":
        completions.reverse()
    prompt = [Message("user", before.strip())] if before.strip() else []
    return prompt, completions[0], completions[1], None


def _read_ultrafeedback(row: Row, draw: Draw) -> Parts:
    """As Zephyr did: the best answer against one of the others, drawn at random (arXiv 2310.16944, section 3)."""
    prompt = [Message("user", text_of(row, "instruction"))]
    completions = row.get("completions")
    if not isinstance(completions, list):
        raise BadRow(
            f"`completions` is {type_in_words(completions)}, expected a list of answers",
            "list the answers with their scores",
            "completions",
        )
    scored = []
    for item in completions:
        score = _overall(item) if isinstance(item, Mapping) else None
        if score is not None and isinstance(item.get("response"), str) and item["response"].strip():
            scored.append((score, text_of(item, "response")))
    if len(scored) < 2:
        raise BadRow("fewer than two scored `completions`", "give two answers an overall_score", "completions")
    best = max(range(len(scored)), key=lambda i: scored[i][0])
    chosen = scored.pop(best)
    rejected = scored[draw(len(scored))]
    return prompt, answer(chosen[1]), answer(rejected[1]), (chosen[0], rejected[0])


def _overall(item: Row) -> float | None:
    score = number(item.get("overall_score"))
    return score if score is not None else number(item.get("fine-grained_score"))


def _read_minimal(row: Row, draw: Draw) -> Parts:
    return [], answer(text_of(row, "sentence_good")), answer(text_of(row, "sentence_bad")), None


def _describe_pairs(row: Row) -> str:
    return f"prompt, chosen, rejected ({'message lists' if isinstance(row['chosen'], list) else 'text'})"


def _describe_alpaca(row: Row) -> str:
    return "instruction, chosen, rejected" + (", input" if "input" in row else "")


FORMATS = (
    Format(
        "llama_factory",
        ("conversations", "chosen", "rejected"),
        _read_llama_factory,
        "conversations, chosen, rejected with {from, value}",
    ),
    Format("pairs", ("prompt", "chosen", "rejected"), _read_pairs, _describe_pairs),
    Format("orca", ("question", "chosen", "rejected"), _read_orca),
    Format(
        "winogrande",
        ("sentence", "option1", "option2", "answer"),
        _read_winogrande,
        "sentence (with `_`), option1, option2, answer",
    ),
    Format(
        "ultrafeedback",
        ("instruction", "completions"),
        _read_ultrafeedback,
        "instruction, completions (scored answers)",
    ),
    Format("ultrafeedback_binarized", ("instruction", "chosen_response", "rejected_response"), _read_binarized),
    Format("alpaca", ("instruction", "chosen", "rejected"), _read_alpaca, _describe_alpaca),
    Format("implicit_prompt", ("chosen", "rejected"), _read_implicit, known=_implicit_known),
    Format("transcripts", ("chosen", "rejected"), _read_transcripts, known=_transcripts_known),
    Format("minimal_pairs", ("sentence_good", "sentence_bad"), _read_minimal),
)
BY_NAME = {format.name: format for format in FORMATS}

MADE_BY_SCORE = frozenset({"ultrafeedback"})
"""Formats whose chosen and rejected are decided here, by score."""
