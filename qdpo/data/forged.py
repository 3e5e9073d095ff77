"""What a text must not say: the special tokens, and the words that the chat template writes between messages.

A tokenizer reads `<|im_start|>` in a question as the token that opens a turn, and a template without such tokens writes
its marks as the same text that anybody can write. A message that holds either forges turns: it is found before it is
rendered, and taken apart where that is wanted, so that no such token can come of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import CUT, BadRow, Inherent, around
from qdpo.data.template import Template
from qdpo.data.turns import SAID, TALK
from qdpo.errors import QdpoError
from qdpo.foreign import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOOKS_LIKE_A_MARK = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)
HTML = re.compile(
    "</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code|p|a|ul|ol|li|br|hr|"
    "pre|div|span|img)>"
)
"""Pieces of ordinary text that some vocabularies (Gemma's) hold whole."""
ANSWERS_OWN = re.compile("</?(think|tool_call)>")
"""What an assistant writes itself, in one token where the tokenizer has it as an ordinary one."""
BRACKETED = re.compile(r"<\|[^<>\n]{1,40}\|>|<+[^<>\s]{1,40}>+|\[[^\[\]\s]{1,40}\]")


class Marks:
    """The texts that forge turns under one tokenizer and template.

    Args:
        named: each with what it is, in words.
        words: those of them that are no mark inside a longer word (`User:` in `SuperUser:`).
        free: those that an assistant may write.
    """

    def __init__(
        self, named: Mapping[str, str], words: frozenset[str] = frozenset(), free: frozenset[str] = frozenset()
    ) -> None:
        self.named = named
        self._all = _pattern(named, words)
        self._said = _pattern([mark for mark in named if mark not in free], words)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, template: Template) -> Marks:
        """Those of a tokenizer and a template: added tokens, and what the template writes around messages."""
        tokens = _tokens(tokenizer)
        brackets, words = _written(tokenizer, template, sorted(tokens, key=len, reverse=True))
        named = {mark: f"the chat template's mark {shown(mark)}" for mark in (*brackets, *words)}
        named |= {token: f"the token {shown(token)}" for token in tokens}
        named |= {token: "the BOS token" for token in tokens if token == tokenizer.bos_token}
        ends = [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(template.end_of_turn))]
        named |= {token: "the end-of-turn token" for token in ends if token in tokens}
        free = frozenset(token for token, special in tokens.items() if not special and ANSWERS_OWN.fullmatch(token))
        return cls(named, frozenset(words), free)

    def first(self, message: Message) -> re.Match[str] | None:
        """The first mark in a message."""
        return (self._said if message.role == "assistant" else self._all).search(message.content)

    def fault(self, pair: Pair) -> tuple[str, str, str, str] | None:
        """What is wrong with a pair: field, reason, what to do, and how it looks; None for a pair without marks."""
        for field, name in (("prompt", "the prompt"), ("chosen", "`chosen`"), ("rejected", "`rejected`")):
            for message in getattr(pair, field):
                if found := self.first(message):
                    mark = found[0]
                    example = shown(around(message.content, found.start()))
                    example = f"{message.role}: {example}" if field == "prompt" and len(pair.prompt) > 1 else example
                    fix = f"take {shown(mark)} out of the text, or set data.special_text=split"
                    return field, f"{name} contains the text of {self.named[mark]}", fix, example
        return None

    def settle(self, pair: Pair, special_text: str) -> Pair | BadRow:
        """The same pair where it has no marks; else what `data.special_text` wants: taken apart, or why it is left out.

        Args:
            pair: as it was read.
            special_text: error, split or drop.
        """
        fault = self.fault(pair)
        if fault is None:
            return pair
        if special_text == "split":
            prompt, chosen, rejected = map(self.apart, (pair.prompt, pair.chosen, pair.rejected))
            return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)
        field, reason, fix, example = fault
        return (Inherent if special_text == "drop" else BadRow)(reason, fix, field, example)

    def apart(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with a `CUT` inside of every mark."""
        return tuple(
            Message(message.role, CUT.join(self._pieces(message))) if self.first(message) else message
            for message in messages
        )

    def _pieces(self, message: Message) -> Iterator[str]:
        """A text in pieces of which none holds a mark: also none that begins inside of another one."""
        waiting = [message.content]
        while waiting:
            text = waiting.pop()
            found = self.first(Message(message.role, text))
            if found is None:
                yield text
            else:
                middle = (found.start() + found.end()) // 2
                waiting += [text[middle:], text[:middle]]


def _pattern(marks: Sequence[str] | Mapping[str, str], words: frozenset[str]) -> re.Pattern[str]:
    # of two that begin at one place the longer one is meant; the empty set finds nothing
    longest_first = sorted(marks, key=len, reverse=True)
    return re.compile(
        "|".join(rf"(?<!\w){re.escape(m)}" if m in words else re.escape(m) for m in longest_first) or "(?!)"
    )


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """The added tokens that no ordinary text holds, and whether they are special ones.

    Of the others (words that somebody added, white space, HTML) text may speak; a single character is a letter.
    """
    found = {str(token): True for token in tokenizer.all_special_tokens}
    for token in tokenizer.added_tokens_decoder.values():
        text = str(token.content)
        if token.special or (LOOKS_LIKE_A_MARK.fullmatch(text) and not HTML.fullmatch(text)):
            found.setdefault(text, token.special)
    return {text: special for text, special in found.items() if len(text) > 1 and text.replace("▁", " ").strip()}


def _written(
    tokenizer: PreTrainedTokenizerBase, template: Template, tokens: Sequence[str]
) -> tuple[list[str], list[str]]:
    """What a template writes around messages beside tokens: marks in brackets, and lines such as `### Answer:`."""
    if template.source is None:
        return [], []
    token = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
    brackets: dict[str, None] = {}
    words: dict[str, None] = {}
    for messages in (TALK, TALK[1:], TALK[-2:]):
        try:
            text = template.conversation(tokenizer, messages[:-1], messages[-1:])
            text += SAID[0] + template.prompt(tokenizer, messages[:-1])
        except QdpoError:  # no place for a system message, or for a second question
            continue
        for part in re.split("|".join(SAID), text):
            rest = token.sub("\n", part)
            brackets |= dict.fromkeys(BRACKETED.findall(rest))
            lines = map(str.strip, BRACKETED.sub("\n", rest).splitlines())
            words |= dict.fromkeys(line for line in lines if len(line) > 2 and (line[0] == "#" or line[-1] == ":"))
    return list(brackets), list(words)
