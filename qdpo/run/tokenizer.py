"""The tokenizer beside an adapter: the base's own files, byte for byte, and proof that they give the same ids.

`save_pretrained` writes a tokenizer anew and forgets what it does not know (`legacy: true` of Llama's, say, which
decides on spaces behind special tokens), and it leaves out sentencepiece's `tokenizer.model`, from which other programs
convert. What a run changes is the chat template, and that alone is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.config.schema import ModelSection
from qdpo.errors import DataError, first_line
from qdpo.files import atomic_write, read_json, write_json
from qdpo.model.load import tokenizer_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which a tokenizer has one at least."""
TEMPLATE = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"
FILES = (
    *VOCABULARIES,
    *(SETTINGS, "special_tokens_map.json", "added_tokens.json", "merges.txt", TEMPLATE),
    *("tokenizer.model.v1", "tokenizer.model.v2", "tokenizer.model.v3", "tekken.json", "spiece.model", "vocab.txt"),
)
"""All files of a tokenizer that its users read, by any program."""

TRICKY = (
    *("", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n ", "\n ", "\r\n"),
    *("a", " a", "a ", "  a", "  two  spaces  ", "line\nbreak", "tab\tin", "ends with lines\n\n"),
    *("Hello, world!", " Hello", "I'm, you're, they'll", "don't DON'T", "it’s “quoted”", "well-known -- dash — em…"),
    *("1234567890", "3.14159 1,000,000", "a1b2c3", "x=y+z;", "2^10 != 1024?", "12 345", "٣٤٥", "½ ²³"),
    *("UPPER lower MiXeD", "camelCaseAndSnake_case", "    indented(code): return [x for x in y]", "#include <a.h>"),
    *("https://example.org/a?b=c&d=%20#e", "user@example.org", "C:\\path\\to", "$100 €50 £20", "!!!???...,,,;;"),
    *("naïve café", "Größe", "нещо на Български", "日本語テキスト", "中文，标点。", "한국어 문장", "العربية", "עברית"),
    *("हिन्दी", "ภาษาไทย", "ភាសាខ្មែរ", "Ελληνικά", "e\u0301", "\u00a0", "\u200b", "ﷺ", "\ufeff"),
    *("🦙", "👩‍👩‍👧‍👦", "🏳️‍🌈🇩🇪", "<b>bold</b>", "<|im_start|>", "</s>", "<s>", "[INST]", "{{ x }}", "<0x0A>"),
)
"""Texts that are hard to tokenise: spaces at every place, line breaks, digits, contractions, punctuation, scripts with
and without spaces, emoji with joiners, combining marks, invisible characters, text that looks like markup, code, and
what nobody trained on."""


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, config: ModelSection, folder: Path, texts: Sequence[str]) -> int:
    """Write a tokenizer as its base has it, with the chat template that the run has set, and load it again.

    Where the base's files mean another tokenizer once they are away from its config.json, transformers writes them.

    Args:
        tokenizer: as it was used; of it only the chat template differs from the base's.
        config: names the base, or another tokenizer.
        folder: where the files go; empty of tokenizers.
        texts: to compare the ids of, besides `TRICKY`.

    Returns:
        How many texts gave the same ids.

    Raises:
        DataError: one did not.
    """
    own = [] if config.trust_remote_code else files_of(tokenizer_source(config).folder)
    for path in own:
        shutil.copyfile(path, folder / path.name)
    if not own or _difference(tokenizer, folder, TRICKY):
        tokenizer.save_pretrained(str(folder))
        if own:
            console.note("the base's tokenizer files mean another tokenizer without its config.json: written anew")
    _set_template(folder, tokenizer.chat_template)
    if difference := _difference(tokenizer, folder, [*TRICKY, *texts]):
        raise DataError(
            f"the tokenizer gives other ids once it is saved: {difference}",
            "an adapter that is used with other ids is another model; take another model.tokenizer, or report this",
        )
    return len(TRICKY) + len(texts)


def files_of(folder: Path) -> list[Path]:
    """The files of the tokenizer in a folder."""
    return [folder / name for name in FILES if (folder / name).is_file()]


def has_tokenizer(folder: Path) -> bool:
    """Whether there is one."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def _difference(tokenizer: PreTrainedTokenizerBase, folder: Path, texts: Sequence[str]) -> str | None:
    """Which text gives other ids by the tokenizer of a folder, and which; None where all give the same."""
    from transformers import AutoTokenizer

    try:
        again = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises a bare Exception for files that it does not understand
        return f"its files cannot be read: {first_line(error)}"
    for text in texts:
        for special in (False, True):
            wanted = tokenizer.encode(text, add_special_tokens=special)
            found = again.encode(text, add_special_tokens=special)
            if found != wanted:
                at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), 0)
                return f"{text[:60]!r} is {found[at : at + 6]} from token {at} on, and was {wanted[at : at + 6]}"
    return None


def _set_template(folder: Path, template: object) -> None:
    """Put a chat template in the place of the files' own, where it is another."""
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    own = (folder / TEMPLATE).read_text("utf-8") if (folder / TEMPLATE).is_file() else settings.get("chat_template")
    if own == template or not isinstance(template, str):
        return
    if settings.pop("chat_template", None) is not None:
        write_json(folder / SETTINGS, settings)
    atomic_write(folder / TEMPLATE, template)
