"""From a conversation to text: the chat template and what ends a turn in it, both tried out before any data is read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.data.named import NAMED, NAMES, WAY_OUT
from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import BadRow, whole
from qdpo.data.renderer import CHARACTERS, Refused, renderer
from qdpo.errors import ConfigError, DataError
from qdpo.files import digest_of
from qdpo.foreign import SHORT, shortened
from qdpo.grammar import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCE = "The quick brown fox isn't lazy."
ANSWERS = ("Zebra", "Mango")
QUESTION = "Kiwi"
ROLES = ("system", "user", "human", "assistant", "gpt", "model", "bot")
"""How a template may name who speaks."""
OTHER = "set data.template to another one, or fix this one"


@dataclass(frozen=True)
class Template:
    """How conversations become text.

    Attributes:
        source: the Jinja text; None renders plain text, one end-of-sequence token after the completion.
        origin: where it came from, for messages.
        end_of_turn: the id that ends the assistant's turn; empty when the template ends it with ordinary text.
        takes_system: whether it has a place for a system message.
        bos_opens_turns: every turn begins with the tokenizer's BOS, as ChatML's do where `<|im_start|>` is the BOS.
    """

    source: str | None
    origin: str
    end_of_turn: frozenset[int]
    takes_system: bool = True
    bos_opens_turns: bool = False

    @property
    def sha256(self) -> str:
        """Identifies the template in run.json."""
        return digest_of([self.source or "plain text"])

    def prompt(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
        """The text up to where the assistant begins to speak.

        Raises:
            DataError: the template refuses the conversation.
        """
        return self._texts(tokenizer, [messages])[0]

    def conversation(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], completion: Sequence[Message]
    ) -> str:
        """The whole text, the completion and its end of turn included.

        Raises:
            DataError: the template refuses the conversation.
        """
        return self._texts(tokenizer, [prompt, completion])[1]

    def render(self, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[list[str] | BadRow]:
        """The texts of pairs: the prompt, prompt and chosen, prompt and rejected; or why there are none.

        Raises:
            DataError: the template itself is at fault.
        """
        jobs = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
        results: list[list[str] | BadRow] = []
        for texts in self._render(tokenizer, jobs):
            refused = next((text for text in texts if isinstance(text, Refused)), None)
            if refused:
                said = shortened(whole(str(refused)), SHORT)
                results.append(
                    BadRow(
                        f"the chat template ({self.origin}) refuses the conversation: {said}",
                        "mend the conversation, or set another data.template",
                    )
                )
            else:
                results.append([str(text) for text in texts])
        return results

    def _texts(self, tokenizer: PreTrainedTokenizerBase, job: Sequence[Sequence[Message]]) -> list[str]:
        (texts,) = self._render(tokenizer, [job])
        for text in texts:
            if isinstance(text, Refused):
                raise DataError(f"the chat template ({self.origin}) cannot render this conversation: {text}", WAY_OUT)
        return [str(text) for text in texts]

    def _render(
        self, tokenizer: PreTrainedTokenizerBase, jobs: Sequence[Sequence[Sequence[Message]]]
    ) -> list[list[str | Refused]]:
        if self.source is None:
            return [_plain(job, str(tokenizer.eos_token)) for job in jobs]
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        return renderer(self.source, tuple(sorted(special.items())), self.origin).render(jobs)


def _plain(job: Sequence[Sequence[Message]], eos: str) -> list[str | Refused]:
    """Prompt and completions as plain text, which reads on."""
    prompt, *completions = job
    before = "\n\n".join(message.content for message in prompt if message.content)
    texts: list[str | Refused] = [before]
    for completion in completions:
        said = "\n\n".join(message.content for message in completion)
        # The completion is separated from the prompt by one space unless either brings it.
        gap = " " if before and not before[-1].isspace() and not said[:1].isspace() else ""
        texts.append(f"{before}{gap}{said}{eos}")
    return [
        text if len(text) <= CHARACTERS else Refused(f"its text is longer than {CHARACTERS:,} characters")
        for text in map(str, texts)
    ]


def load_template(wanted: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that `data.template` asks for, tried out.

    Args:
        wanted: `auto` (the tokenizer's own), `none` (plain text), a name of `NAMED`, or a file.
        tokenizer: the base's tokenizer.

    Raises:
        ConfigError: no such template, or `auto` and the tokenizer has none.
        DataError: the template or the tokenizer is faulty, see `probe_tokenizer` and `probe`.
    """
    probe_tokenizer(tokenizer)
    if wanted == "none":
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "data.template: none needs a tokenizer with an end-of-sequence token", "set model.tokenizer to one"
            )
        return Template(None, "plain text", frozenset({int(tokenizer.eos_token_id)}))
    return probe(*_find(wanted, tokenizer), tokenizer)


def own_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """A tokenizer's own template as it is, not tried out: it renders, and what ends a turn is not known.

    Raises:
        ConfigError: the tokenizer has none.
    """
    return Template(*_find("auto", tokenizer), frozenset())


def _find(wanted: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The Jinja source and its origin."""
    if wanted == "auto":
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        if not isinstance(own, str):
            raise ConfigError(
                "the tokenizer has no chat template",
                f"set data.template to one of {NAMES}, to a file, or to `none` for plain text",
            )
        return own, "the tokenizer's"
    if wanted in NAMED:
        return NAMED[wanted], f"named {wanted}"
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise ConfigError(f"data.template: there is no template or file {wanted!r}", f"choose auto, none, {NAMES}")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.template: {path} cannot be read: {error}", "give a text file in UTF-8") from error
    return text, str(path)


def probe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that loses text.

    Raises:
        DataError: it cannot encode, gives nothing, gives mostly the unknown token, or ids beyond its vocabulary.
    """
    way_out = "set model.tokenizer to the one that the base was trained with"
    try:
        ids = [int(i) for i in tokenizer.encode(SENTENCE, add_special_tokens=False)]
        back = str(tokenizer.decode(ids))
    except Exception as error:
        raise DataError(
            f"the tokenizer cannot encode text: {str(error)[:200] or type(error).__name__}", way_out
        ) from error
    if not ids:
        raise DataError("the tokenizer gives no tokens for text", way_out)
    unknown = sum(i == tokenizer.unk_token_id for i in ids)
    if tokenizer.unk_token_id is not None and unknown * 2 > len(ids):
        raise DataError(f"the tokenizer does not know {unknown} of {len(ids)} tokens of plain English", way_out)
    if max(ids) >= len(tokenizer):
        raise DataError(f"the tokenizer gives the id {max(ids)}, its vocabulary ends at {len(tokenizer) - 1}", way_out)
    for name in ("bos", "eos"):
        found = getattr(tokenizer, f"{name}_token_id")
        if found is not None and not 0 <= found < len(tokenizer):
            raise DataError(f"the tokenizer's {name.upper()} has the id {found}, outside its vocabulary", way_out)
    if tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer.encode(SENTENCE)[1:]:
        raise DataError("the tokenizer writes its BOS after the beginning of a text", way_out)
    wanted = {c for c in SENTENCE.lower() if c.isalnum()}
    if len(wanted - set(back.lower())) * 4 > len(wanted):
        raise DataError(f"the tokenizer loses text: {SENTENCE!r} comes back as {back[:60]!r}", way_out)


def probe(source: str, origin: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Try a template and find what ends a turn in it.

    Raises:
        DataError: it cannot render, leaves out what was said, writes more than one BOS, or never ends a turn.
    """
    if len(source) > CHARACTERS:
        raise DataError(f"the chat template ({origin}) has {len(source):,} characters, more than {CHARACTERS:,}", OTHER)
    if not source.strip():
        raise DataError(f"the chat template ({origin}) is empty", OTHER)
    template = Template(source, origin, frozenset())
    question = [Message("user", QUESTION)]
    prompt = template.prompt(tokenizer, question)
    texts = [template.conversation(tokenizer, question, [Message("assistant", said)]) for said in ANSWERS]
    _check_texts(prompt, texts, origin)
    tails = [text[text.rindex(said) + len(said) :] for said, text in zip(ANSWERS, texts, strict=True)]
    if tails[0] != tails[1] or not tails[0].strip():
        raise DataError(
            f"the chat template ({origin}) writes nothing after an answer: the model would never learn to stop",
            f"{OTHER}: an answer must be followed by {{{{ eos_token }}}} or another end of turn",
        )
    opens = _opens_turns(template, texts[0], tokenizer)
    if not opens:
        _check_bos(texts[0], origin, tokenizer)
    end = _first_special(tails[0], tokenizer)
    if end is None:
        tail = tokenizer.encode(tails[0], add_special_tokens=False)
        console.warn(
            f"the chat template ({origin}) ends a turn with {tails[0].strip()!r}, which is no special token of this "
            f"tokenizer: it is learned as {counted(len(tail), 'ordinary token')}"
        )
    ends = frozenset() if end is None else frozenset({end})
    return Template(source, origin, ends, _takes_system(template, tokenizer), opens)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that ends the assistant's turn in a tokenizer's own template; None where ordinary text does.

    Raises:
        ConfigError: the tokenizer has no template.
        DataError: the template cannot render.
    """
    said = ANSWERS[0]
    text = own_template(tokenizer).conversation(tokenizer, [Message("user", QUESTION)], [Message("assistant", said)])
    return _first_special(text.rpartition(said)[2], tokenizer)


def _first_special(text: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    special = {int(i) for i in tokenizer.all_special_ids}
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((int(i) for i in tokenizer.encode(text, add_special_tokens=False) if i in special), None)


def _check_texts(prompt: str, texts: list[str], origin: str) -> None:
    if QUESTION not in prompt or any(QUESTION not in text for text in texts):
        raise DataError(f"the chat template ({origin}) leaves out the user's message", OTHER)
    for said, text in zip(ANSWERS, texts, strict=True):
        if said not in text:
            raise DataError(f"the chat template ({origin}) leaves out the assistant's answer", OTHER)
    shared = len(prompt)
    while not all(text.startswith(prompt[:shared]) for text in texts):
        shared -= 1
    if shared < prompt.rindex(QUESTION) + len(QUESTION):
        raise DataError(
            f"the chat template ({origin}) changes the prompt when an answer follows: prompts would not be shared",
            OTHER,
        )


def _opens_turns(template: Template, text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's BOS is what a template opens every turn with, and not written beside its own marks.

    A turn more must bring one BOS more, no BOS may follow on another one, and each must be a word of the template
    itself or stand before the name of a role.
    """
    bos, word = tokenizer.bos_token_id, str(tokenizer.bos_token)
    if template.source is None or bos is None or bos == tokenizer.eos_token_id:
        return False
    turns = [Message("user", QUESTION), Message("assistant", ANSWERS[0])]
    try:
        longer = template.conversation(tokenizer, [*turns, turns[0]], [turns[1]])
    except DataError:  # of one turn only
        return False
    short, long = (tokenizer.encode(said, add_special_tokens=False) for said in (text, longer))
    in_a_row = any(first == second == bos for first, second in itertools.pairwise(long))
    of_the_template = "bos_token" not in template.source
    before_a_role = all(after.lstrip().lower().startswith(ROLES) for after in longer.split(word)[1:])
    return long.count(bos) == short.count(bos) + len(turns) and not in_a_row and (of_the_template or before_a_role)


def _check_bos(text: str, origin: str, tokenizer: PreTrainedTokenizerBase) -> None:
    bos = tokenizer.bos_token_id
    if bos is None or bos == tokenizer.eos_token_id:
        return
    ids = tokenizer.encode(text, add_special_tokens=False)
    if ids.count(bos) > 1:
        raise DataError(f"the chat template ({origin}) writes {ids.count(bos)} BOS tokens into one conversation", OTHER)
    if bos in ids[1:]:
        before = text[: text.find(str(tokenizer.bos_token))]
        raise DataError(
            f"the chat template ({origin}) writes its BOS after other text ({before!r})",
            f"{OTHER}: a template that is laid out for reading may need its line breaks and indentation removed",
        )


def _takes_system(template: Template, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        text = template.prompt(tokenizer, [Message("system", "Papaya"), Message("user", QUESTION)])
    except DataError:
        return False
    return "Papaya" in text
