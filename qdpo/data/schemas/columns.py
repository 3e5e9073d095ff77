"""Rows with a column for the chosen answer and one for the rejected: by far the most datasets."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qdpo.data.messages import (
    after_history,
    answer,
    message_of,
    messages_of,
    question_in,
    role_of,
    said_in,
    split_conversations,
    system_of,
    turns_of,
)
from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Row, scores_of, text_of
from qdpo.data.schemas.judged import VERDICTS, names_an_answer
from qdpo.data.schemas.shape import Draw, Format, Parts
from qdpo.data.schemas.templated import answer_begins

SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("chosen_completion", "rejected_completion"),
    ("accepted", "rejected"),
    ("preferred", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred_response", "dispreferred_response"),
    ("preferred_response", "rejected_response"),
    ("response_j", "response_k"),
    ("winning_response", "losing_response"),
    ("good_response", "bad_response"),
    ("response", "rejected_response"),
    ("answer", "rejected_answer"),
    ("output", "rejected_output"),
    ("pos_resp", "neg_resp"),
)
"""What the two answers are called; `response_j` is the better one in StackExchange's pairs."""
ASKED = ("prompt", "question", "instruction", "query", "input", "user")
"""What a question given as text is called."""
TALKED = ("prompt", "conversations", "conversation", "messages", "context", "trajectory", "history")
"""What a conversation given as messages is called."""


def _read_pairs(row: Row, draw: Draw) -> Parts:
    chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
    return (*_with_prompt(row, "prompt", chosen, rejected), scores_of(row))


def _with_prompt(
    row: Row, column: str, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt and answers, of a prompt in a column and answers that may repeat it."""
    shared: list[Message] = []
    if len(chosen) > 1 or len(rejected) > 1:
        # ultrafeedback_binarized repeats the prompt inside both conversations
        shared, chosen, rejected = split_conversations(chosen, rejected)
    prompt = _prompt(row, column)
    if shared:
        said = {message.content.strip() for message in shared}
        if any(message.role == "user" and message.content.strip() not in said for message in prompt):
            raise BadRow(
                f"`{column}` is not the prompt that `chosen` and `rejected` begin with",
                f"make the three agree, or leave `{column}` out",
                column,
            )
        prompt = shared
    if prompt and prompt[0].role != "system":
        prompt = system_of(row) + prompt
    return prompt, chosen, rejected


def _prompt(row: Row, column: str) -> list[Message]:
    """What was asked: messages, or a text with the turns before it."""
    value = row.get(column)
    if isinstance(value, list):
        # An empty list, like an empty text, is an empty prompt.
        turns = messages_of(value, column) if value else []
        return after_history(row, turns) if column != "history" else turns
    if isinstance(value, Mapping):
        return [message_of(value, column)]
    text = question_in(row, column, empty_ok=True)
    asked = [Message("user", text)] if text else []
    return after_history(row, asked) if column != "history" else asked


def _side(row: Row, column: str) -> list[Message]:
    if names_an_answer(row, row.get(column)):
        raise BadRow(
            f"`{column}` only names one of two answers that are in other columns",
            f"take its opposite out, and set data.columns={{{VERDICTS[0]}: {column}}}",
            column,
        )
    return said_in(row, column)


WHOLE = ("", "_messages", "_conversations", "_conversation")
"""What follows `chosen` and `rejected` where they hold whole conversations."""


def _implicit_known(row: Row) -> str | None:
    for suffix in WHOLE:
        sides = [f"{side}{suffix}" for side in ("chosen", "rejected")]
        if not all(isinstance(row.get(side), list) for side in sides):
            continue
        if suffix:
            return f"columns {', '.join(sides)} with whole conversations"
        begins = role_of(row["chosen"][0]) if row["chosen"] else None
        if "prompt" not in row and "conversations" not in row and begins != "assistant":
            return "columns chosen, rejected with whole conversations and no prompt"
    return None


def _read_implicit(row: Row, draw: Draw) -> Parts:
    suffix = next((suffix for suffix in WHOLE[1:] if f"chosen{suffix}" in row), "")
    chosen, rejected = (messages_of(row.get(f"{side}{suffix}"), f"{side}{suffix}") for side in ("chosen", "rejected"))
    prompt, chosen, rejected = split_conversations(chosen, rejected)
    if prompt and prompt[0].role != "system":
        prompt = system_of(row) + prompt
    return prompt, chosen, rejected, scores_of(row)


ASKS = 20
"""Characters that two texts begin with, from which these are a prompt; fewer where they are a third of a text."""


def _alike(first: str, second: str) -> int:
    """Characters that two texts begin with."""
    shorter = min(len(first), len(second))
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), shorter)


def _shared_text(chosen: str, rejected: str) -> str:
    """What two texts begin with, up to the end of a word; neither is all of it."""
    place = _alike(chosen, rejected)
    if place == min(len(chosen), len(rejected)) or not (chosen[place].isspace() and rejected[place].isspace()):
        while place and not chosen[place - 1].isspace():
            place -= 1
    return chosen[:place].rstrip()


def _implicit_text_known(row: Row) -> str | None:
    sides = [row.get("chosen"), row.get("rejected")]
    others = (value for column, value in row.items() if column not in ("chosen", "rejected"))
    if not all(isinstance(side, str) for side in sides) or any(isinstance(o, str) and " " in o for o in others):
        return None  # what else is text may be the prompt
    shared, shorter = len(_shared_text(*map(str, sides))), min(len(str(side)) for side in sides)
    # answers without a prompt may begin with the same word
    asks = shared >= ASKS or 3 * shared >= shorter > 0
    return "columns chosen, rejected, which begin with the same text" if asks else None


def _read_implicit_text(row: Row, draw: Draw) -> Parts:
    """A prompt inside both texts, as TRL's `extract_prompt` finds it, but never half a word."""
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    shared = _shared_text(chosen, rejected)
    # a template's mark may end in white space, or have none before the answer
    shared = chosen[: answer_begins(chosen[: _alike(chosen, rejected)]) or len(shared)]
    prompt = [Message("user", shared)] if shared else []
    return prompt, answer(chosen[len(shared) :]), answer(rejected[len(shared) :]), scores_of(row)


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


def _read_orca(row: Row, draw: Draw) -> Parts:
    chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
    if isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str):
        # Llama's answers, the rejected ones, begin with a space that would give them away.
        chosen, rejected = (answer(side[0].content.strip()) for side in (chosen, rejected))
    text_of(row, "question")
    return (*_with_prompt(row, "question", chosen, rejected), scores_of(row))


def _read_binarized(row: Row, draw: Draw) -> Parts:
    text_of(row, "instruction")
    chosen, rejected = (_side(row, f"{side}_response") for side in ("chosen", "rejected"))
    return (*_with_prompt(row, "instruction", chosen, rejected), scores_of(row))


def _read_alpaca(row: Row, draw: Draw) -> Parts:
    text_of(row, "instruction")
    chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
    return (*_with_prompt(row, "instruction", chosen, rejected), scores_of(row))


def _read_llama_factory(row: Row, draw: Draw) -> Parts:
    prompt = after_history(row, turns_of(row, "conversations"))
    if prompt[0].role != "system":
        prompt = system_of(row) + prompt
    return prompt, _side(row, "chosen"), _side(row, "rejected"), scores_of(row)


OTHERS = (
    *((prompt, "chosen", "rejected") for prompt in ("prompt", "question", "instruction", "conversations")),
    ("instruction", "chosen_response", "rejected_response"),
)
"""Names that have a format of their own."""


def _named(row: Row) -> tuple[str, str, str] | None:
    """The columns of prompt, chosen and rejected under other names."""
    sides = next((sides for sides in SIDES if row.keys() >= set(sides)), None)
    if sides is None:
        return None
    talked = [name for name in TALKED if isinstance(row.get(name), list) and row[name]]
    asked = next((name for name in ASKED if isinstance(row.get(name), str) and name not in sides), None)
    if asked and talked == ["history"]:
        talked = []  # the turns before the question
    prompt = talked[0] if talked else asked
    if prompt is None or (prompt, *sides) in OTHERS:
        return None
    return prompt, *sides


def _named_known(row: Row) -> str | None:
    names = _named(row)
    return f"columns {', '.join(names)}" if names else None


def _read_named(row: Row, draw: Draw) -> Parts:
    names = _named(row)
    if names is None:
        raise BadRow("no prompt with two answers", "write the columns that the other rows have")
    prompt, *sides = names
    chosen, rejected = (_side(row, side) for side in sides)
    return (*_with_prompt(row, prompt, chosen, rejected), scores_of(row))


def _read_old_alpaca(row: Row, draw: Draw) -> Parts:
    outputs = row.get("output")
    if not isinstance(outputs, list) or len(outputs) != 2 or not all(isinstance(text, str) for text in outputs):
        raise BadRow("`output` is not a list of two texts", "the better answer first: [text, text]", "output")
    text_of(row, "instruction")
    chosen, rejected = (answer(text_of({"output": text}, "output")) for text in outputs)
    return (*_with_prompt(row, "instruction", chosen, rejected), scores_of(row))


def _old_alpaca_known(row: Row) -> str | None:
    if "instruction" in row and isinstance(row.get("output"), list) and all(isinstance(o, str) for o in row["output"]):
        return "columns instruction, output with the better answer first"
    return None


def _read_steps(row: Row, draw: Draw) -> Parts:
    """Both answers begin with the same steps, of which the next one is judged (arXiv 2406.18629)."""
    steps = text_of(row, "initial_reason_steps", empty_ok=True)
    chosen, rejected = (answer(steps + text_of(row, side)) for side in ("chosen", "rejected"))
    return (*_with_prompt(row, "prompt", chosen, rejected), scores_of(row))


def _describe_pairs(row: Row) -> str:
    return f"prompt, chosen, rejected ({'message lists' if isinstance(row['chosen'], list) else 'text'})"


def _describe_alpaca(row: Row) -> str:
    return "instruction, chosen, rejected" + (", input" if "input" in row else "")


COLUMNS = (
    Format(
        "llama_factory",
        ("conversations", "chosen", "rejected"),
        _read_llama_factory,
        "LLaMA-Factory and Unsloth (ShareGPT), hiyouga/DPO-En-Zh-20k",
        "conversations, chosen, rejected with {from, value}",
    ),
    Format(
        "step_dpo",
        ("prompt", "initial_reason_steps", "chosen", "rejected"),
        _read_steps,
        "xinlai/Math-Step-DPO-10K",
    ),
    Format(
        "pairs",
        ("prompt", "chosen", "rejected"),
        _read_pairs,
        "TRL, OpenRLHF, NeMo-RL, Predibase, JumpStart; HuggingFaceH4/ultrafeedback_binarized, argilla's -cleaned, "
        "allenai's Tulu 3 and OLMo 2 mixtures, RewardBench, princeton-nlp's and snorkelai's UltraFeedback, "
        "mlabonne/orpo-dpo-mix-40k, jondurbin's sets, OpenHermesPreferences, trl-lib/tldr-preference, Dahoas's sets",
        _describe_pairs,
    ),
    Format(
        "orca",
        ("question", "chosen", "rejected"),
        _read_orca,
        "Intel/orca_dpo_pairs, axolotl's chatml.intel",
    ),
    Format(
        "ultrafeedback_binarized",
        ("instruction", "chosen_response", "rejected_response"),
        _read_binarized,
        "argilla/ultrafeedback-binarized-preferences, argilla/distilabel-math-preference-dpo, axolotl's chatml.argilla",
    ),
    Format(
        "alpaca",
        ("instruction", "chosen", "rejected"),
        _read_alpaca,
        "LLaMA-Factory (Alpaca, with `history`), Magpie-Align's DPO sets, distilabel",
        _describe_alpaca,
    ),
    Format(
        "alpaca_lists",
        ("instruction", "output"),
        _read_old_alpaca,
        "LLaMA-Factory before 0.8",
        "instruction, output as a list: the better answer first",
        known=_old_alpaca_known,
    ),
    Format(
        "implicit_prompt",
        ("chosen", "rejected"),
        _read_implicit,
        "TRL, argilla/dpo-mix-7k, Skywork-Reward-Preference, trl-lib/ultrafeedback_binarized, torchtune, "
        "LLaMA-Factory v1",
        "chosen, rejected (or with `_messages`, `_conversations`): whole conversations",
        known=_implicit_known,
    ),
    Format(
        "transcripts",
        ("chosen", "rejected"),
        _read_transcripts,
        "Anthropic/hh-rlhf",
        "chosen, rejected: `Human:`, `Assistant:`",
        known=_transcripts_known,
    ),
    Format(
        "named_pairs",
        (),
        _read_named,
        "axolotl (chat_template.default, chatml.icr), distilabel-intel-orca-dpo-pairs, NeMo-Aligner, ms-swift's "
        "query-response, Code-Preference-Pairs, UltraInteract_pair, stack-exchange-paired, DPO-En-Zh-20k-Preference, "
        "CValues-Comparison, Colossal-AI, PKU's processed-hh-rlhf, H2O LLM Studio",
        f"a prompt by one of the names {', '.join(dict.fromkeys((*ASKED, *TALKED)))}, and two answers by other names: "
        + "; ".join(map(", ".join, SIDES[1:])),
        known=_named_known,
    ),
    Format(
        "implicit_text",
        ("chosen", "rejected"),
        _read_implicit_text,
        "TRL's text without a prompt column",
        "chosen, rejected: texts that begin alike, up to the end of a word the prompt",
        known=_implicit_text_known,
    ),
)
"""The formats of this file, the more specific one of two first."""
