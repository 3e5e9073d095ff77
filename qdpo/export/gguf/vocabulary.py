"""The tokenizer as GGUF stores it.

Read from tokenizer.json (or a lone tokenizer.model), never through a helper that guesses: a sentencepiece-like
vocabulary needs a score for each token, because llama.cpp merges by the score of the result, and the scores follow from
the order of the merges. What the tokenizer puts before and after a text is measured on a text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer

from qdpo.console import note
from qdpo.errors import InputMissingError
from qdpo.export.folder import check_rows
from qdpo.export.gguf.pretokenizers import pre_tokenizer, steps
from qdpo.export.gguf.sentencepiece import read_pieces
from qdpo.files import read_json

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NEVER_MERGED = -1e6
"""Score of tokens that no merge makes (single characters): lower than that of any merge."""


@dataclass
class Vocabulary:
    """What `tokenizer.ggml.*` keys say.

    Attributes:
        model: `llama` for sentencepiece-like tokenizers, `gpt2` for byte-level ones.
        pre: name of the pre-tokenizer.
        tokens, types: one for each row of the embedding.
        scores: for `llama`, the merge priority of each token.
        merges: for `gpt2`, `left right` in order of priority.
        add_space_prefix: for `llama`, whether a space is put before the text; None writes nothing.
        special: `bos`, `eos`, `unk`, `pad` and `eot` ids, where known; `eot` ends the assistant's turn.
        add_bos, add_eos: whether encoding adds them.
        template: the chat template, in Jinja; None when there is none.
        caveats: differences that remain between llama.cpp's tokenizer and this one.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    special: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    template: str | None = None
    caveats: list[str] = field(default_factory=list)

    def write(self, writer: GGUFWriter) -> None:
        """Write all keys."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.template is not None:
            writer.add_chat_template(self.template)


def read_vocabulary(
    folder: Path, rows: int, config: dict[str, Any], generation: dict[str, Any], end_of_turn: int | None = None
) -> Vocabulary:
    """Read the tokenizer of a folder.

    Args:
        folder: has tokenizer.json or tokenizer.model, and tokenizer_config.json.
        rows: rows of the embedding; every row gets a token, rows without one are marked unused.
        config: the model's config.json, for special ids that the tokenizer does not name.
        generation: its generation_config.json, for further ids at which generation stops.
        end_of_turn: the id that ends the assistant's turn in the chat template, where that is known.

    Raises:
        InputMissingError: llama.cpp has no tokenizer that does the same.
    """
    settings = _settings(folder)
    if (folder / "tokenizer.json").is_file():
        vocabulary = _from_json(folder / "tokenizer.json", rows, settings, config)
    elif (folder / "tokenizer.model").is_file():
        vocabulary = _from_sentencepiece(folder, rows, settings, config)
    else:
        raise InputMissingError(f"{folder} has neither tokenizer.json nor tokenizer.model")
    _name_the_ends(vocabulary, generation.get("eos_token_id"), end_of_turn)
    vocabulary.template = read_template(folder)
    for caveat in vocabulary.caveats:
        note(caveat)
    return vocabulary


TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
STOPS = frozenset({*TURN_ENDS, "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<EOT>", "[EOT]"})
"""Texts of tokens at which llama.cpp stops though a file does not name them (b11434, `llama-vocab.cpp`)."""


def _name_the_ends(vocabulary: Vocabulary, stops: Any, end_of_turn: int | None) -> None:
    """Name the token that ends a turn, and tell of stops that a GGUF has no place for.

    A model may stop at several tokens, in any order: Llama 3.1 at the end of a text, of a message and of a turn.
    """
    listed = [int(i) for i in stops] if isinstance(stops, list) else []
    eos = vocabulary.special.get("eos")
    if end_of_turn is None:
        by_name = [i for i in listed if vocabulary.tokens[i] in TURN_ENDS]
        end_of_turn = next(iter([*by_name, *(i for i in listed if i != eos)]), None)
    if end_of_turn is not None:
        vocabulary.special["eot"] = end_of_turn
    lost = [i for i in listed if i not in (eos, end_of_turn) and vocabulary.tokens[i] not in STOPS]
    if lost:
        names = ", ".join(repr(vocabulary.tokens[i]) for i in lost)
        vocabulary.caveats.append(f"generation_config.json stops at {names} too, which a GGUF cannot say")


def read_template(folder: Path) -> str | None:
    """The chat template of a tokenizer: its own file first (transformers 5), else an entry of tokenizer_config.json."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text("utf-8")
    template = _settings(folder).get("chat_template")
    if isinstance(template, list):
        by_name = {entry["name"]: entry["template"] for entry in template}
        template = by_name.get("default") or next(iter(by_name.values()), None)
    return template


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _from_json(path: Path, rows: int, settings: dict[str, Any], config: dict[str, Any]) -> Vocabulary:
    source = read_json(path)
    if source["model"]["type"] != "BPE":
        raise InputMissingError(f"{path}: no GGUF for a {source['model']['type']} tokenizer; qdpo converts BPE")
    tokenizer = Tokenizer.from_str(json.dumps(source))
    by_id = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    check_rows(max(by_id), rows)
    sentencepiece = bool(source["model"].get("byte_fallback"))
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in source["model"]["merges"]]
    added = {token["id"]: token for token in source.get("added_tokens") or []}
    tokens, types = [], []
    for number in range(rows):
        text, kind = _token(number, by_id, added, source["model"].get("unk_token"), sentencepiece)
        tokens.append(text)
        types.append(kind)
    if sentencepiece:
        rank: dict[str, int] = {}
        for order, (left, right) in enumerate(merges):
            rank.setdefault(left + right, order)
        scores = [
            -float(rank[text]) if kind is TokenType.NORMAL and text in rank else _NEVER_MERGED
            for text, kind in zip(tokens, types, strict=True)
        ]
        prefix, caveats = _space_prefix(source)
        vocabulary = Vocabulary("llama", "default", tokens, types, scores=scores, add_space_prefix=prefix)
    else:
        caveats = _byte_level_caveats(source)
        # A space within a part of a merge cannot be written in the form `left right`; byte-level parts have none.
        written = [f"{left} {right}" for left, right in merges]
        vocabulary = Vocabulary("gpt2", pre_tokenizer(source), tokens, types, merges=written)
    vocabulary.caveats = caveats
    vocabulary.special = _special(settings, config, tokenizer.token_to_id)
    bare, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    vocabulary.add_bos = full[:1] == [vocabulary.special.get("bos")] and full[:1] != bare[:1]
    vocabulary.add_eos = full[-1:] == [vocabulary.special.get("eos")] and full[-1:] != bare[-1:]
    extra = len(full) - len(bare) - vocabulary.add_bos - vocabulary.add_eos
    if extra:
        caveats.append(
            f"the tokenizer adds {extra} tokens around a text that llama.cpp cannot add; templates are exact"
        )
    return vocabulary


def _token(
    number: int, by_id: dict[int, str], added: dict[int, dict[str, Any]], unknown: str | None, sentencepiece: bool
) -> tuple[str, TokenType]:
    """Text and type of one row."""
    text = by_id.get(number)
    if text is None:
        return f"[PAD{number}]", TokenType.UNUSED
    if text == unknown and (sentencepiece or number in added):
        return text, TokenType.UNKNOWN
    if number in added:
        if added[number]["special"]:
            return text, TokenType.CONTROL
        # llama.cpp looks for user-defined tokens in the raw text, before spaces are replaced.
        return text.replace("▁", " ") if sentencepiece else text, TokenType.USER_DEFINED
    if sentencepiece and _BYTE.fullmatch(text):
        return text, TokenType.BYTE
    return text, TokenType.NORMAL


def _space_prefix(source: dict[str, Any]) -> tuple[bool, list[str]]:
    """Whether a sentencepiece-like tokenizer puts a space before the text, and what llama.cpp does differently."""
    prefix, caveats = False, []
    for step in steps(source.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend":
            prefix = True
        elif not (step["type"] == "Replace" and step["content"] == "▁" and step["pattern"].get("String") == " "):
            raise InputMissingError(f"the tokenizer normalises text by {step['type']}, llama.cpp does not")
    for step in steps(source.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace":
            scheme = step.get("prepend_scheme", "always")
            prefix = prefix or scheme != "never"
            if scheme == "first":
                caveats.append(
                    "the tokenizer puts a space before the first word only (prepend_scheme: first); llama.cpp also "
                    "puts one after each special token, so text right after one gets another token"
                )
        elif not (step["type"] == "Split" and step["pattern"].get("String") == " "):
            raise InputMissingError(f"the tokenizer splits text by {step['type']}, llama.cpp's does not")
    if any(t.get("normalized") and not t["special"] for t in source.get("added_tokens") or []) and prefix:
        caveats.append(
            "added tokens of this tokenizer are found after a space was put before the text, llama.cpp finds them in "
            "the raw text: a text that begins with one gets other tokens"
        )
    return prefix, caveats


def _byte_level_caveats(source: dict[str, Any]) -> list[str]:
    normalizers = [step["type"] for step in steps(source.get("normalizer"), "normalizers")]
    if odd := sorted(set(normalizers) - {"NFC"}):
        raise InputMissingError(f"the tokenizer normalises text by {', '.join(odd)}, llama.cpp does not")
    if normalizers:
        return ["the tokenizer composes characters (NFC), llama.cpp does not: decomposed text gets other tokens"]
    return []


def _special(settings: dict[str, Any], config: dict[str, Any], to_id: Any) -> dict[str, int]:
    """bos, eos, unk and pad: named by the tokenizer, else by the model's config."""
    found = {}
    for name in ("bos", "eos", "unk", "pad"):
        entry = settings.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        number = to_id(text) if text else config.get(f"{name}_token_id")
        if isinstance(number, list):
            number = number[0] if number else None
        if isinstance(number, int) and number >= 0:
            found[name] = number
    return found


def _from_sentencepiece(folder: Path, rows: int, settings: dict[str, Any], config: dict[str, Any]) -> Vocabulary:
    pieces = read_pieces(folder / "tokenizer.model")
    tokens, scores = list(pieces.texts), list(pieces.scores)
    types = [TokenType(kind) for kind in pieces.types]
    added = {int(number): token for number, token in (settings.get("added_tokens_decoder") or {}).items()}
    check_rows(max([len(tokens) - 1, *added]), rows)
    for number in range(len(tokens), rows):
        token = added.get(number)
        tokens.append(token["content"] if token else f"[PAD{number}]")
        kind = TokenType.CONTROL if token and token.get("special") else TokenType.USER_DEFINED
        types.append(kind if token else TokenType.UNUSED)
        scores.append(_NEVER_MERGED)
    vocabulary = Vocabulary("llama", "default", tokens, types, scores=scores, add_space_prefix=pieces.add_prefix_space)
    ids = {text: number for number, text in enumerate(tokens)}
    vocabulary.special = _special(settings, config, ids.get)
    vocabulary.add_bos = bool(settings.get("add_bos_token", True)) and "bos" in vocabulary.special
    vocabulary.add_eos = bool(settings.get("add_eos_token", False)) and "eos" in vocabulary.special
    return vocabulary
