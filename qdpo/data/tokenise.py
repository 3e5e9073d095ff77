"""From pairs of conversations to token ids, cut to length, every cut counted.

Prompts are cut on the left (the oldest turns first, then the oldest tokens of the last user message, keeping BOS and
the template's header where that is possible), completions on the right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from qdpo.data.encoder import Encoder, make_encoder
from qdpo.data.pairs import Message, Pair, TokenPair
from qdpo.data.pieces import BadRow, Inherent, around
from qdpo.data.template import Template
from qdpo.foreign import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LONGER = "raise data.max_length"


class CutAway(Inherent):
    """A pair of which nothing comparable is left after cutting: inherent in the limits, not the row's fault."""


def common_prefix(*sequences: Sequence[int]) -> int:
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
        merge: how the first such merge looks: the prompt's last tokens, and what the answers begin with instead.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int
    max_prompt_length: int
    cuts: Counter[str] = field(default_factory=Counter)
    merge: str | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text, with one BOS if the tokenizer has one and the text does not bring it."""
        return self._encode_all([text])[0]

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        encoded = self._encoder(texts)
        bos = self.bos
        return encoded if bos is None else [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]

    @cached_property
    def _encoder(self) -> Encoder:
        return make_encoder(self.tokenizer)

    @cached_property
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
        (result,) = self.batch([pair])
        if isinstance(result, BadRow):
            raise result
        return result[0]

    def batch(self, pairs: Sequence[Pair]) -> list[tuple[TokenPair, list[str]] | BadRow]:
        """The ids of pairs and what was cut of each, or why one cannot be used; much faster than one by one.

        Raises:
            DataError: the template is at fault, not a pair.
        """
        rendered = self.template.render(self.tokenizer, pairs)
        texts = [text for item in rendered if not isinstance(item, BadRow) for text in item]
        ids = iter(self._encode_all(texts) if texts else [])
        results: list[tuple[TokenPair, list[str]] | BadRow] = []
        for pair, item in zip(pairs, rendered, strict=True):
            if isinstance(item, BadRow):
                results.append(item)
                continue
            try:
                results.append(self._cut(pair, next(ids), next(ids), next(ids)))
            except BadRow as reason:
                results.append(reason)
        return results

    def _cut(
        self, pair: Pair, whole: list[int], with_chosen: list[int], with_rejected: list[int]
    ) -> tuple[TokenPair, list[str]]:
        # Tokens that merge across the boundary (a space taken by the answer's first word) belong to the answers.
        shared = len(whole)
        if with_chosen[:shared] != whole or with_rejected[:shared] != whole:
            shared = common_prefix(whole, with_chosen, with_rejected)
        prompt, chosen, rejected = whole[:shared], with_chosen[shared:], with_rejected[shared:]
        if not prompt:
            raise BadRow(
                "the prompt has no token, and the tokenizer has no BOS to condition on", "write a prompt", "prompt"
            )
        self._check_special(pair, prompt, chosen, rejected)
        counted = []
        if shared < len(whole):
            counted.append("boundary")
            if self.merge is None:
                self.merge = self._describe(whole[shared:], chosen)
        if len(prompt) > self.max_prompt_length:
            counted.append("prompt")
            prompt = self._cut_prompt(pair.prompt, prompt, merged=len(whole) - shared)
        room = self.max_length - len(prompt)
        counted += [name for name, ids in (("chosen", chosen), ("rejected", rejected)) if len(ids) > room]
        same = chosen == rejected
        chosen, rejected = chosen[:room], rejected[:room]
        if not chosen or not rejected:
            raise CutAway("an answer has no token left after cutting to max_length", LONGER)
        if same:
            raise BadRow(
                "chosen and rejected are identical in tokens", "write two answers that differ", "chosen, rejected"
            )
        if chosen == rejected:
            raise CutAway("chosen and rejected are identical after cutting to max_length", LONGER)
        self.cuts.update(counted)
        return TokenPair(pair.row, prompt, chosen, rejected), counted

    def _check_special(self, pair: Pair, prompt: list[int], chosen: list[int], rejected: list[int]) -> None:
        """One BOS (or one a turn), and one end of turn in each completion: texts may spell out either."""
        opens = self.template.bos_opens_turns
        bos = self.tokenizer.bos_token_id if opens else self.bos
        if bos is not None and bos not in self.template.end_of_turn and bos != self.tokenizer.eos_token_id:
            # where turns begin with it, a prompt has several: what was said must not bring another
            said = opens and any(str(self.tokenizer.bos_token) in message.content for message in pair.prompt)
            for name, found in (
                ("the prompt", said if opens else bos in prompt[1:]),
                ("`chosen`", bos in chosen),
                ("`rejected`", bos in rejected),
            ):
                if found:
                    text = str(self.tokenizer.bos_token)
                    raise self._spelled(f"{name} contains the text of the BOS token", name.split()[-1], text, pair)
        if self.template.end_of_turn:
            for name, ids in (("chosen", chosen), ("rejected", rejected)):
                ends = sum(ids.count(end) for end in self.template.end_of_turn)
                if ends > 1:
                    text = str(self.tokenizer.convert_ids_to_tokens(min(self.template.end_of_turn)))
                    raise self._spelled(f"`{name}` contains the text of the end-of-turn token", name, text, pair)
                if ends == 0:
                    raise BadRow(
                        f"`{name}` has no end-of-turn token: the template writes none for this conversation",
                        "mend the conversation, or set another data.template",
                        name,
                    )

    @staticmethod
    def _spelled(what: str, field: str, token: str, pair: Pair) -> BadRow:
        """For a text that spells out a special token."""
        field = field.strip("`")
        texts = [message.content for message in getattr(pair, field) if token in message.content]
        example = shown(around(texts[0], texts[0].index(token))) if texts else None
        return BadRow(what, f"take {shown(token)} out of the text", field, example)

    def _describe(self, lost: list[int], answer: list[int]) -> str:
        def show(ids: list[int]) -> str:
            return " ".join(repr(token) for token in self.tokenizer.convert_ids_to_tokens(ids))

        return f"{show(lost[:4])} became {show(answer[: len(lost[:4]) + 1])} before an answer"

    def _cut_prompt(self, messages: tuple[Message, ...], ids: list[int], *, merged: int) -> list[int]:
        """The newest `max_prompt_length` tokens of a prompt, with its beginning kept where it can be.

        Args:
            messages: the conversation.
            ids: its ids.
            merged: tokens at its end that belong to the answers.
        """
        limit = self.max_prompt_length
        if self.template.source is not None and messages:
            system = [m for m in messages[:1] if m.role == "system"]
            turns = list(messages[len(system) :])
            while len(turns) > 1 and len(ids) > limit:
                # a turn is a user message and the answer to it
                turns = turns[2:] if len(turns) > 2 else turns[1:]
                ids = self.encode(self.template.prompt(self.tokenizer, [*system, *turns]))
                ids = ids[: len(ids) - merged]
            if len(ids) <= limit:
                return ids
            # BOS, the system message and the role marker are what a prompt with another question has in common
            other = self.encode(self.template.prompt(self.tokenizer, [*system, Message(turns[-1].role, "0")]))
            header = common_prefix(ids, other)
        else:
            header = 1 if ids[0] == self.bos else 0
        if header > limit // 2:
            header = 1 if ids[0] == self.bos else 0
        return ids[:header] + ids[len(ids) - (limit - header) :]
