"""Rows with several answers and what each is worth: scores, ranks, or votes of readers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from qdpo.data.messages import (
    SPEAKERS,
    answer,
    asked_in,
    message_of,
    messages_of,
    split_conversations,
    turns_of,
)
from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Inherent, Row, number, text_of, type_in_words
from qdpo.data.schemas.shape import MEMBERS, Draw, Format, Parts, best_and_another, first_of

ASKED = ("instruction", "prompt", "question", "input", "query", "user_input", "conversation", "messages")
"""What the question is called."""
LISTED = ("completions", "answers", "generations", "responses", "candidates", "responses_and_scores")
"""What the list of answers is called."""
RATED = ("ratings", "scores", "all_rm_scores", "rewards")
"""What a list with a score for each of the answers is called."""
SAID = ("response", "text", "answer", "completion", "content", "output")
"""What an answer is called among its scores."""
SCORED = ("overall_score", "fine-grained_score", "score", "rating", "pm_score", "reward", "helpfulness")
RANKED = ("rank",)
"""What an answer's score is called, the higher the better, and what its rank, the lower the better."""


def _worth(item: Row) -> float | None:
    for names, sign in ((SCORED, 1), (RANKED, -1)):
        for name in names:
            found = number(item.get(name))
            if found is not None:
                return sign * found
    return None


def _question(row: Row) -> list[Message]:
    column = first_of(row, ASKED)
    if column is None:
        raise BadRow("no question", f"add the column `{ASKED[1]}`", ASKED[1])
    return asked_in(row, column)


def _decided(
    scored: list[tuple[float, list[Message]]], draw: Draw, column: str
) -> tuple[list[Message], list[Message], tuple[float, float]]:
    """Chosen, rejected, and the scores of the two."""
    if len(scored) < 2:
        raise BadRow(f"fewer than two scored `{column}`", "give two answers a score each", column)
    chosen, rejected = best_and_another(scored, draw)
    return chosen[1], rejected[1], (chosen[0], rejected[0])


def _read_ultrafeedback(row: Row, draw: Draw) -> Parts:
    prompt = [Message("user", text_of(row, "instruction"))]
    return prompt, *_decided(_scored_items(row, "completions"), draw, "completions")


def _scored_items(row: Row, column: str) -> list[tuple[float, list[Message]]]:
    """The answers of a list of objects that have a text and a score; others are passed over."""
    items = row.get(column)
    if not isinstance(items, list):
        raise BadRow(
            f"`{column}` is {type_in_words(items)}, expected a list of answers",
            "list the answers with their scores",
            column,
        )
    scored = []
    for item in items:
        score = _worth(item) if isinstance(item, Mapping) else None
        said = first_of(item, SAID) if score is not None else None
        if said is not None and isinstance(item[said], str) and item[said].strip():
            scored.append((score or 0.0, answer(text_of(item, said))))
    return scored


def _list_known(row: Row) -> str | None:
    asked, listed = first_of(row, ASKED), first_of(row, LISTED)
    if asked is None or listed is None or not isinstance(row[listed], list):
        return None
    if rated := next((name for name in RATED if isinstance(row.get(name), list)), None):
        numbers = [value for value in row[rated] if number(value) is not None]
        return f"columns {asked}, {listed}, {rated}" if numbers else None
    for item in row[listed]:
        if isinstance(item, Mapping) and _worth(item) is not None and first_of(item, SAID):
            return f"columns {asked}, {listed} (with {first_of(item, (*SCORED, *RANKED))})"
    return None


def _read_list(row: Row, draw: Draw) -> Parts:
    listed = first_of(row, LISTED) or LISTED[0]
    rated = next((name for name in RATED if isinstance(row.get(name), list)), None)
    if rated is None:
        scored = _scored_items(row, listed)
    else:
        texts, scores = row.get(listed), row[rated]
        if not isinstance(texts, list) or len(texts) != len(scores):
            raise BadRow(f"`{rated}` has not a score for each of `{listed}`", "null where there is none", rated)
        found = [(number(score), text) for score, text in zip(scores, texts, strict=True)]
        scored = [
            (score, messages_of(said, listed) if isinstance(said, list) else answer(text_of({listed: said}, listed)))
            for score, said in found
            if score is not None and ((isinstance(said, list) and said) or (isinstance(said, str) and said.strip()))
        ]
    return _question(row), *_decided(scored, draw, listed)


def _read_ranked(row: Row, draw: Draw) -> Parts:
    """NeMo-RL: completions with a rank, 0 the best, each a list of messages."""
    return turns_of(row, "context"), *_decided(_completions(row, "rank", -1), draw, "completions")


def _completions(row: Row, key: str, sign: int) -> list[tuple[float, list[Message]]]:
    scored = []
    for item in row["completions"] if isinstance(row.get("completions"), list) else []:
        worth = number(item.get(key)) if isinstance(item, Mapping) else None
        said = item.get("completion") if worth is not None else None
        if worth is not None and said is not None:
            turns = messages_of(said, "completions") if isinstance(said, list) else [message_of(said, "completions")]
            scored.append((sign * worth, turns))
    return scored


def _read_vertex(row: Row, draw: Draw) -> Parts:
    """Vertex AI: contents with parts, and two completions of which one has the higher score."""
    prompt = turns_of(row, "contents")
    system = row.get("systemInstruction") or row.get("system_instruction")
    if isinstance(system, Mapping):
        prompt = [message_of({**system, "role": "system"}, "systemInstruction"), *prompt]
    return prompt, *_decided(_completions(row, "score", 1), draw, "completions")


def _nova_known(row: Row) -> str | None:
    last = row["messages"][-1] if isinstance(row.get("messages"), list) and row["messages"] else None
    if isinstance(last, Mapping) and isinstance(last.get("candidates"), list):
        return "columns messages whose last one has candidates"
    return None


def _read_nova(row: Row, draw: Draw) -> Parts:
    """Amazon Nova: the last message has candidates, one preferred."""
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns:
        raise BadRow(
            "`messages` is no list of messages", "write the question, and a message with candidates", "messages"
        )
    prompt = messages_of(turns[:-1], "messages")
    system = row.get("system")
    if isinstance(system, list) and system:
        prompt = [message_of({"role": "system", "content": system}, "system"), *prompt]
    sides: dict[Any, list[Message]] = {}
    candidates = turns[-1].get("candidates") if isinstance(turns[-1], Mapping) else None
    for item in candidates if isinstance(candidates, list) else []:
        if isinstance(item, Mapping):
            sides[str(item.get("preferenceLabel"))] = [message_of({"role": "assistant", **item}, "messages")]
    if not {"preferred", "non-preferred"} <= sides.keys():
        raise BadRow("the last message has no preferred and non-preferred candidate", "label the two", "messages")
    return prompt, sides["preferred"], sides["non-preferred"], None


# -- one answer a row

STEERED_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
"""What stands between the turns of HelpSteer's longer prompts."""


def _steered_answers(row: Row) -> list[dict[str, Any]]:
    """Of the rows of one prompt one item; HelpSteer is judged by its helpfulness, as its authors do."""
    members = row[MEMBERS]
    said = {column: value for column, value in members[0].items() if column not in ("response", "helpfulness")}
    return [{**said, "answers": [{"text": m.get("response"), "score": m.get("helpfulness")} for m in members]}]


def _read_steered(row: Row, draw: Draw) -> Parts:
    scored = _scored_items(row, "answers")
    if len(scored) < 2:
        raise Inherent("the prompt has one answer alone: nothing to compare", "none is needed", "response")
    first, *others = STEERED_TURN.split(text_of(row, "prompt"))
    turns = [Message("user", first.strip())]
    for speaker, said in zip(others[::2], others[1::2], strict=True):
        turns.append(Message(SPEAKERS[speaker.lower()], text_of({"prompt": said.strip()}, "prompt")))
    return turns, *_decided(scored, draw, "answers")


# -- trees of conversations


def _tree_nodes(row: Row) -> list[dict[str, Any]]:
    """The questions of a tree whose answers are ranked, each with the turns before it."""
    found: list[dict[str, Any]] = []
    waiting: list[tuple[Any, list[dict[str, Any]]]] = [(row.get("prompt"), [])]
    while waiting:
        node, before = waiting.pop()
        if not isinstance(node, Mapping):
            continue
        turns = [*before, {"role": node.get("role"), "content": node.get("text")}]
        listed = node.get("replies")
        replies = [reply for reply in listed if isinstance(reply, Mapping)] if isinstance(listed, list) else []
        if sum(number(reply.get("rank")) is not None for reply in replies) >= 2 and turns[-1]["role"] == "prompter":
            found.append({"turns": turns, "answers": [{k: r.get(k) for k in ("text", "rank")} for r in replies]})
        waiting += [(reply, turns) for reply in reversed(replies)]
    if not found:
        raise Inherent("the tree has no question with two ranked answers", "none is needed", "prompt")
    return found


def _read_node(row: Row, draw: Draw) -> Parts:
    return messages_of(row["turns"], "turns"), *_decided(_scored_items(row, "answers"), draw, "answers")


def _tree_known(row: Row) -> str | None:
    node = row.get("prompt")
    if isinstance(node, Mapping) and {"text", "role", "replies"} <= node.keys():
        return "columns prompt with text, role, replies: a tree"
    return None


def _flat_tree(row: Row) -> list[dict[str, Any]]:
    """The tree of messages that name their parents, and of it the questions whose answers are ranked."""
    nodes = {str(member.get("message_id")): {**member, "replies": []} for member in row[MEMBERS]}
    root = None
    for node in nodes.values():
        parent = nodes.get(str(node.get("parent_id")))
        if parent is not None and not node.get("deleted"):
            parent["replies"].append(node)
        elif not node.get("parent_id"):
            root = node
    return _tree_nodes({"prompt": root})


# -- StackExchange and Reddit


def _read_summaries(row: Row, draw: Draw) -> Parts:
    """OpenAI's summaries of posts: `choice` is the place of the better one."""
    info, summaries, choice = row.get("info"), row.get("summaries"), row.get("choice")
    if not isinstance(info, Mapping) or not isinstance(summaries, list) or len(summaries) != 2 or choice not in (0, 1):
        raise BadRow("no post with two summaries and a choice of 0 or 1", "write the columns as they were", "choice")
    post = info.get("post") or info.get("article")
    texts = [
        answer(text_of(item if isinstance(item, Mapping) else {"text": item}, "text").strip()) for item in summaries
    ]
    return [Message("user", text_of({"post": post}, "post"))], texts[choice], texts[1 - choice], None


def _conversations_known(row: Row) -> str | None:
    if isinstance(row.get("conv_A"), list) and isinstance(row.get("conv_B"), list) and "conv_A_rating" in row:
        return "columns conv_A, conv_B, conv_A_rating, conv_B_rating"
    return None


def _read_rated_conversations(row: Row, draw: Draw) -> Parts:
    scores = [number(row.get(f"conv_{side}_rating")) for side in "AB"]
    sides = [turns_of(row, f"conv_{side}") for side in "AB"]
    first, second = scores
    if first is None or second is None:
        raise BadRow("the conversations have no rating each", "write two numbers", "conv_A_rating")
    if second > first:
        sides.reverse()
    return *split_conversations(*sides), (max(first, second), min(first, second))


def _read_webgpt(row: Row, draw: Draw) -> Parts:
    question = row.get("question")
    text = question.get("full_text") if isinstance(question, Mapping) else question
    scores = number(row.get("score_0")), number(row.get("score_1"))
    if scores[0] is None or scores[1] is None:
        raise BadRow("the answers have no score each", "write two numbers", "score_0")
    scored = [(scores[i] or 0.0, answer(text_of(row, f"answer_{i}"))) for i in (0, 1)]
    return [Message("user", text_of({"question": text}, "question"))], *_decided(scored, draw, "answer_0")


SCORED_FORMATS = (
    Format(
        "ultrafeedback",
        ("instruction", "completions"),
        _read_ultrafeedback,
        "openbmb/UltraFeedback, openbmb/UltraSafety",
        "instruction, completions (scored answers)",
        by_score=True,
        drawn=True,
    ),
    Format(
        "nemo_rl",
        ("context", "completions"),
        _read_ranked,
        "NeMo-RL",
        "context, completions with rank",
        by_score=True,
        drawn=True,
    ),
    Format(
        "vertex", ("contents", "completions"), _read_vertex, "Vertex AI's preference tuning", by_score=True, drawn=True
    ),
    Format(
        "nova",
        ("messages",),
        _read_nova,
        "Amazon Nova",
        "messages, the last of which has candidates",
        known=_nova_known,
    ),
    Format(
        "scored_answers",
        (),
        _read_list,
        "distilabel (generations, ratings), berkeley-nest/Nectar, HuggingFaceH4/stack-exchange-preferences, GPT-4-LLM",
        "a question and a list of answers (completions, answers, generations, responses) with scores or ranks: the "
        "best against one drawn by the seed",
        known=_list_known,
        by_score=True,
        drawn=True,
    ),
    Format(
        "helpsteer",
        ("prompt", "response", "helpfulness"),
        _read_steered,
        "nvidia/HelpSteer, nvidia/HelpSteer2",
        "prompt, response, helpfulness; rows with the same prompt one after another are one",
        by_score=True,
        drawn=True,
        grouped_by=lambda row: json.dumps(row.get("prompt"), default=str),
        split=_steered_answers,
    ),
    Format(
        "oasst_tree",
        ("prompt",),
        _read_node,
        "OpenAssistant's trees",
        "prompt with text, role, replies: each question with two ranked answers is a pair",
        known=_tree_known,
        by_score=True,
        drawn=True,
        split=_tree_nodes,
    ),
    Format(
        "oasst",
        ("message_id", "parent_id", "message_tree_id", "text", "role", "rank"),
        _read_node,
        "OpenAssistant/oasst1, oasst2",
        "message_id, parent_id, message_tree_id, text, role, rank; messages of one tree one after another",
        by_score=True,
        drawn=True,
        grouped_by=lambda row: str(row.get("message_tree_id")),
        split=_flat_tree,
    ),
    Format(
        "summaries",
        ("info", "summaries", "choice"),
        _read_summaries,
        "openai/summarize_from_feedback",
    ),
    Format(
        "rated_conversations",
        ("conv_A", "conv_B"),
        _read_rated_conversations,
        "llm-blender/Unified-Feedback",
        "conv_A, conv_B with conv_A_rating, conv_B_rating",
        known=_conversations_known,
        by_score=True,
    ),
    Format(
        "webgpt",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        _read_webgpt,
        "openai/webgpt_comparisons",
        by_score=True,
    ),
)
"""The formats of this file, the more specific one of two first."""
