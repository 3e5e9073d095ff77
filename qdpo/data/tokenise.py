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
from qdpo.data.forged import Marks
from qdpo.data.pairs import Message, Pair, TokenPair
from qdpo.data.pieces import CUT, BadRow, Inherent
from qdpo.data.template import Template
from qdpo.errors import DataError

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
        special_text: what becomes of text that spells out special tokens or the template's marks (`data.special_text`).
        cuts: how many prompts, chosen and rejected completions were cut so far, and how many prompts lost tokens to
            a merge across the boundary with the completion.
        merge: how the first such merge looks: the prompt's last tokens, and what the answers begin with instead.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int
    max_prompt_length: int
    special_text: str = "error"
    cuts: Counter[str] = field(default_factory=Counter)
    merge: str | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text, with one BOS if the tokenizer has one and the text does not bring it."""
        return self._encode_all([text])[0]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the assistant begins to speak.

        Raises:
            DataError: the template refuses the conversation, or it spells out special tokens and is not to be split.
        """
        settled = self.marks.settle(Pair(0, tuple(messages), (), ()), self.special_text)
        if isinstance(settled, BadRow):
            raise DataError(f"{settled}: {settled.example}", settled.fix)
        return self.encode(self.template.prompt(self.tokenizer, settled.prompt))

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        uncut = [text for text in texts if CUT not in text]
        whole = iter(self._encoder(uncut) if uncut else [])
        encoded = [self._encode_apart(text) if CUT in text else next(whole) for text in texts]
        bos = self.bos
        return encoded if bos is None else [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]

    def _encode_apart(self, text: str) -> list[int]:
        """The ids of a text piece by piece, so that no token lies across a `CUT`."""
        first, *others = text.split(CUT)
        (ids,) = self._encoder([first])
        # behind a line's end no tokenizer writes the space that it puts before a text
        (line,) = self._encoder(["\n"])
        for piece in others:
            (found,) = self._encoder([f"\n{piece}"])
            ids = ids + (found[len(line) :] if found[: len(line)] == line else self._encoder([piece])[0])
        return ids

    @cached_property
    def marks(self) -> Marks:
        """The texts that forge turns."""
        return Marks.of(self.tokenizer, self.template)

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
        settled = [self.marks.settle(pair, self.special_text) for pair in pairs]
        rendered = iter(self.template.render(self.tokenizer, [item for item in settled if isinstance(item, Pair)]))
        items = [item if isinstance(item, BadRow) else next(rendered) for item in settled]
        texts = [text for item in items if not isinstance(item, BadRow) for text in item]
        ids = iter(self._encode_all(texts) if texts else [])
        results: list[tuple[TokenPair, list[str]] | BadRow] = []
        for pair, usable, item in zip(pairs, settled, items, strict=True):
            if isinstance(usable, BadRow):
                results.append(usable)
                continue
            if isinstance(item, BadRow):
                results.append(item)
                continue
            try:
                result, counted = self._cut(usable, next(ids), next(ids), next(ids))
                results.append((result, counted if usable is pair else [*counted, "special"]))
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
        self._check_special(prompt, chosen, rejected)
        counted = []
        if shared < len(whole):
            counted.append("boundary")
            if self.merge is None:
                self.merge = self._describe(whole[shared:], chosen)
        if len(prompt) > self.max_prompt_length:
            counted.append("prompt")
            prompt, system = self._cut_prompt(pair.prompt, prompt, merged=len(whole) - shared)
            counted += ["system message"] * system
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

    def _check_special(self, prompt: list[int], chosen: list[int], rejected: list[int]) -> None:
        """One BOS (or one a turn), and one end of turn in each completion, also of texts that a tokenizer changes."""
        opens = self.template.bos_opens_turns
        bos = self.tokenizer.bos_token_id if opens else self.bos
        if bos is not None and bos not in self.template.end_of_turn and bos != self.tokenizer.eos_token_id:
            for name, found in (
                ("the prompt", not opens and bos in prompt[1:]),
                ("`chosen`", bos in chosen),
                ("`rejected`", bos in rejected),
            ):
                if found:
                    raise BadRow(f"{name} contains the text of the BOS token", field=name.split()[-1].strip("`"))
        if self.template.end_of_turn:
            for name, ids in (("chosen", chosen), ("rejected", rejected)):
                ends = sum(ids.count(end) for end in self.template.end_of_turn)
                if ends > 1:
                    raise BadRow(f"`{name}` contains the text of the end-of-turn token", field=name)
                if ends == 0:
                    raise BadRow(
                        f"`{name}` has no end-of-turn token: the template writes none for this conversation",
                        "mend the conversation, or set another data.template",
                        name,
                    )

    def _describe(self, lost: list[int], answer: list[int]) -> str:
        def show(ids: list[int]) -> str:
            return " ".join(repr(token) for token in self.tokenizer.convert_ids_to_tokens(ids))

        return f"{show(lost[:4])} became {show(answer[: len(lost[:4]) + 1])} before an answer"

    def _cut_prompt(self, messages: tuple[Message, ...], ids: list[int], *, merged: int) -> tuple[list[int], bool]:
        """The newest `max_prompt_length` tokens of a prompt, with its beginning kept where it can be.

        Returns:
            The ids, and whether something of the system message is lost.

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
                return ids, False
            # BOS, the system message and the role marker are what a prompt with another question has in common
            other = self.encode(self.template.prompt(self.tokenizer, [*system, Message(turns[-1].role, "0")]))
            header = common_prefix(ids, other)
        else:
            header = len(ids)
        # a beginning that would take more than half of the room is not kept: a system message is that long
        lost = header > limit // 2
        if lost:
            header = 1 if ids[0] == self.bos else 0
        has_system = any(message.role == "system" and message.content for message in messages[:1])
        return ids[:header] + ids[len(ids) - (limit - header) :], lost and has_system
