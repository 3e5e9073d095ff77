"""From a pair of conversations to token ids, cut to length, every cut counted.

Prompts are cut on the left (the oldest turns first, then the oldest tokens of the last user message, keeping BOS and
the template's header where that is possible), completions on the right.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qdpo.data.formats import BadRow
from qdpo.data.pairs import Message, Pair, TokenPair
from qdpo.data.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def common_prefix(*sequences: list[int]) -> int:
    """Length of the longest common prefix."""
    length = 0
    for items in zip(*sequences, strict=False):
        if any(item != items[0] for item in items):
            break
        length += 1
    return length


@dataclass
class Tokeniser:
    """Turns pairs into ids under one template and one pair of limits.

    Attributes:
        tokenizer: the base's tokenizer.
        template: how conversations become text.
        max_length: tokens of prompt + completion.
        max_prompt_length: tokens of the prompt.
        cuts: how many prompts, chosen and rejected completions were cut so far, and how many prompts lost tokens to
            a merge across the boundary with the completion.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int
    max_prompt_length: int
    cuts: Counter[str] = field(default_factory=Counter)

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text, with one BOS if the tokenizer has one and the text does not bring it."""
        ids = [int(i) for i in self.tokenizer.encode(text, add_special_tokens=False)]
        bos = self.bos
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    @property
    def bos(self) -> int | None:
        """The id that begins every sequence, None for tokenizers that use none."""
        if self.tokenizer.bos_token_id is None:
            return None
        # Qwen and others define a BOS token but never write it: what the tokenizer does by itself decides.
        written = self.tokenizer.encode("a", add_special_tokens=True)
        templated = self.template.source is not None and "bos_token" in self.template.source
        return int(self.tokenizer.bos_token_id) if self.tokenizer.bos_token_id in written or templated else None

    def __call__(self, pair: Pair) -> TokenPair:
        """The ids of one pair.

        Raises:
            BadRow: nothing is left to compare after cutting, or there is nothing to condition on.
        """
        prompt_text = self.template.prompt(self.tokenizer, pair.prompt)
        sides = [
            self.encode(self.template.conversation(self.tokenizer, pair.prompt, completion))
            for completion in (pair.chosen, pair.rejected)
        ]
        whole = self.encode(prompt_text)
        # Tokens that merge across the boundary (a space taken by the answer's first word) belong to the answers.
        shared = common_prefix(whole, *sides)
        if shared < len(whole):
            self.cuts["boundary"] += 1
        prompt, chosen, rejected = whole[:shared], sides[0][shared:], sides[1][shared:]
        if not prompt:
            raise BadRow("the prompt has no token, and the tokenizer has no BOS to condition on")
        if len(prompt) > self.max_prompt_length:
            self.cuts["prompt"] += 1
            prompt = self._cut_prompt(pair.prompt, prompt)
        room = self.max_length - len(prompt)
        for name, completion in (("chosen", chosen), ("rejected", rejected)):
            if len(completion) > room:
                self.cuts[name] += 1
        chosen, rejected = chosen[:room], rejected[:room]
        if not chosen or not rejected:
            raise BadRow("an answer has no token left after cutting to max_length")
        if chosen == rejected:
            raise BadRow("chosen and rejected are identical after cutting to max_length")
        return TokenPair(pair.row, prompt, chosen, rejected)

    def _cut_prompt(self, messages: tuple[Message, ...], ids: list[int]) -> list[int]:
        """The newest `max_prompt_length` tokens of a prompt, with its beginning kept where it can be."""
        if self.template.source is not None:
            system = [m for m in messages[:1] if m.role == "system"]
            turns = list(messages[len(system) :])
            while len(turns) > 1 and len(ids) > self.max_prompt_length:
                # a turn is a user message and the answer to it
                turns = turns[2:] if len(turns) > 2 else turns[1:]
                ids = self.encode(self.template.prompt(self.tokenizer, [*system, *turns]))
            if len(ids) <= self.max_prompt_length:
                return ids
            # BOS, the system message and the role marker are what a prompt with another question has in common
            other = self.encode(
                self.template.prompt(self.tokenizer, [*system, Message(turns[-1].role, "0" if turns else "")])
            )
            header = common_prefix(ids, other)
        else:
            header = 1 if ids[0] == self.bos else 0
        if header > self.max_prompt_length // 2:
            header = 1 if ids[0] == self.bos else 0
        return ids[:header] + ids[len(ids) - (self.max_prompt_length - header) :]
