"""Trying a chat template and a tokenizer on a small conversation, before any data is read.

What is wrong with them would otherwise show in every row, or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdpo import console
from qdpo.data.pairs import Message
from qdpo.data.renderer import CHARACTERS
from qdpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.template import Template

SENTENCE = "The quick brown fox isn't lazy."
ANSWERS = ("Zebra", "Mango")
QUESTION = "Kiwi"
OTHER = "set data.template to another one, or fix this one"


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
    from qdpo.data.template import Template

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
    _check_bos(texts[0], origin, tokenizer)
    special = {int(i) for i in tokenizer.all_special_ids}
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    tail = [int(i) for i in tokenizer.encode(tails[0], add_special_tokens=False)]
    end = next((i for i in tail if i in special), None)
    if end is None:
        console.warn(
            f"the chat template ({origin}) ends a turn with {tails[0].strip()!r}, which is no special token of this "
            f"tokenizer: it is learned as {len(tail)} ordinary tokens"
        )
    return Template(
        source, origin, frozenset() if end is None else frozenset({end}), _takes_system(template, tokenizer)
    )


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
