"""A prompt's ids as people read a conversation: its turns, each with the word for who speaks.

What a template writes around what is said is found by rendering a conversation of known words with it, and reading
that back as the tokenizer decodes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from qdpo.data.pairs import Message
from qdpo.data.template import Template, own_template
from qdpo.errors import ConfigError, QdpoError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAID = ("Papaya", "Kiwi", "Zebra", "Mango", "Banana")
ROLES = ("system", "user", "assistant", "user", "assistant")
TALK = [Message(role, said) for role, said in zip(ROLES, SAID, strict=True)]
"""A conversation of known words, by which a template shows what it writes around messages."""


def spoken(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a prompt, `user: ...` for every turn of a chat; where there are no turns, the text alone.

    Args:
        tokenizer: with the chat template that the ids were made with.
        ids: of the prompt, up to where the assistant begins to speak.
    """
    plain = str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
    try:
        marks = _marks(tokenizer, str(own_template(tokenizer).source))
    except ConfigError:  # there is none
        return plain
    if not marks:
        return plain
    text = str(tokenizer.decode(list(ids), skip_special_tokens=False))
    longest_first = sorted(marks, key=len, reverse=True)
    first, *pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    if not pieces:
        return plain
    turns = [("", first), *((marks[mark], said) for mark, said in zip(pieces[::2], pieces[1::2], strict=True))]
    told = [(role, _without(tokenizer, said)) for role, said in turns]
    return "\n".join(f"{role}: {said}" if role else said for role, said in told if said)


def _without(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    for token in tokenizer.all_special_tokens:
        text = text.replace(str(token), "")
    return text.strip()


@lru_cache(maxsize=4)
def _marks(tokenizer: PreTrainedTokenizerBase, source: str) -> dict[str, str]:
    """What stands before something that is said, and who says it; empty where the template has no marks.

    Args:
        tokenizer: of the ids.
        source: the template's text.
    """
    template = Template(source, "the tokenizer's", frozenset())
    try:
        short = _between(tokenizer, template, 1)
    except QdpoError:
        return {}
    try:
        long = _between(tokenizer, template, 0)
    except QdpoError:  # no place for a system message
        long = []
    # where a system message is written into the first question, what stands before it stands before the user's
    marks = {mark: role for between in (long, short) for mark, role in between}
    # a mark that is a part of ordinary text would cut what is said
    return {mark: role for mark, role in marks.items() if len(mark) > 2 and not mark.isalnum()}


def _between(tokenizer: PreTrainedTokenizerBase, template: Template, first: int) -> list[tuple[str, str]]:
    messages = TALK[first:]
    rendered = template.conversation(tokenizer, messages[:-1], messages[-1:])
    text = str(tokenizer.decode(tokenizer.encode(rendered, add_special_tokens=False)))
    found, start = [], 0
    for message in messages:
        place = text.find(message.content, start)
        if place < 0:
            return []
        found.append((text[start:place].strip(), message.role))
        start = place + len(message.content)
    return found
