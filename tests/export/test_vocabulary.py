"""Tokenizers as GGUF stores them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from export import toys
from gguf import TokenType
from materials import MATERIAL, STORIES

from qdpo.errors import InputMissingError
from qdpo.export.gguf.sentencepiece import read_pieces
from qdpo.export.gguf.vocabulary import Vocabulary, read_vocabulary


def read(folder: Path, rows: int = toys.VOCABULARY, **generation: Any) -> Vocabulary:
    return read_vocabulary(folder, rows, {}, generation)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toys.byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, **parts: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def test_byte_level_tokens_types_and_padding(folder: Path) -> None:
    tokenizer = toys.byte_tokenizer()
    tokenizer.add_tokens(["<|word|>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    rows = len(tokenizer) + 3
    vocabulary = read(folder, rows)
    assert vocabulary.model == "gpt2"
    assert len(vocabulary.tokens) == rows
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert kinds["<s>"] == kinds["<|im_end|>"] == TokenType.CONTROL
    assert kinds["<|word|>"] == TokenType.USER_DEFINED
    assert kinds[f"[PAD{rows - 1}]"] == TokenType.UNUSED
    assert kinds["Ġ"] == TokenType.NORMAL
    assert vocabulary.merges == [
        " ".join(m) for m in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ]
    assert (vocabulary.add_bos, vocabulary.add_eos) == (False, False)


def test_bos_and_eos_are_measured(folder: Path) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    edit(folder, post_processor=template)
    vocabulary = read(folder)
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, False)
    template["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})  # type: ignore[attr-defined]
    template["special_tokens"]["</s>"] = {"id": "</s>", "ids": [1], "tokens": ["</s>"]}  # type: ignore[index]
    edit(folder, post_processor=template)
    vocabulary = read(folder)
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, True)


def test_several_ends_become_end_of_turn(folder: Path) -> None:
    assert "eot" not in read(folder, eos_token_id=1).special
    assert read(folder, eos_token_id=[1, 7]).special["eot"] == 7


LLAMA_31 = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


def with_ends(folder: Path, *ends: str) -> list[int]:
    """Give the tokenizer special tokens; their ids."""
    tokenizer = toys.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(ends)})
    tokenizer.save_pretrained(folder)
    return [int(i) for i in tokenizer.convert_tokens_to_ids(list(ends))]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_end_of_turn_of_llama_31_is_eot(folder: Path, order: tuple[int, ...]) -> None:
    stops = with_ends(folder, *LLAMA_31)
    listed = [stops[i] for i in order]
    rows = toys.VOCABULARY + 3
    assert read(folder, rows, eos_token_id=listed).special["eot"] == stops[2]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|eot_id|>"}))
    special = read(folder, rows, eos_token_id=listed).special
    assert (special["eos"], special["eot"]) == (stops[2], stops[2])


def test_the_end_of_turn_of_the_template_goes_before_names(folder: Path) -> None:
    own, named = with_ends(folder, "<|end_of_turn|>", "<|im_end|>")
    rows = toys.VOCABULARY + 2
    vocabulary = read_vocabulary(folder, rows, {}, {"eos_token_id": [1, named]}, end_of_turn=own)
    assert vocabulary.special["eot"] == own
    assert read_vocabulary(folder, rows, {}, {"eos_token_id": 1}, end_of_turn=own).special["eot"] == own


def test_a_stop_that_a_gguf_cannot_say_is_told(folder: Path) -> None:
    stops = with_ends(folder, "<|eot_id|>", "<|stop|>", "<|eom_id|>")
    caveats = read(folder, toys.VOCABULARY + 3, eos_token_id=stops).caveats
    assert caveats == ["generation_config.json stops at '<|stop|>' too, which a GGUF cannot say"]


def test_template_of_transformers_5_and_before(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    own = folder / "chat_template.jinja"
    assert read(folder).template == own.read_text()
    own.unlink()
    assert read(folder).template is None
    settings.write_text(json.dumps({"chat_template": "old"}))
    assert read(folder).template == "old"
    settings.write_text(json.dumps({"chat_template": [{"name": "default", "template": "named"}]}))
    assert read(folder).template == "named"


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


def test_pre_tokenizers_are_known_by_their_regex(folder: Path) -> None:
    assert read(folder).pre == "gpt-2"
    edit(folder, pre_tokenizer=split(LLAMA3))
    assert read(folder).pre == "llama-bpe"
    edit(folder, pre_tokenizer=split(LLAMA3.replace("{1,3}", "")))
    assert read(folder).pre == "qwen2"
    edit(folder, pre_tokenizer=split(LLAMA3.replace("{1,3}", "{1,4}")))
    with pytest.raises(InputMissingError, match="no known name"):
        read(folder)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}}, "space before"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no known name"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "Unigram"),
    ],
)
def test_what_llama_cpp_tokenises_differently_is_refused(folder: Path, parts: dict[str, Any], named: str) -> None:
    edit(folder, **parts)
    with pytest.raises(InputMissingError, match=named):
        read(folder)


def test_nfc_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, normalizer={"type": "NFC"})
    read(folder)
    assert "composes characters" in capsys.readouterr().err


def test_more_tokens_than_rows(folder: Path) -> None:
    with pytest.raises(InputMissingError, match="only 200 rows"):
        read(folder, rows=200)


def test_scores_of_a_sentencepiece_like_tokenizer_follow_the_merges() -> None:
    vocabulary = read(STORIES, rows=512)
    assert (vocabulary.model, vocabulary.add_space_prefix) == ("llama", True)
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, False)
    assert vocabulary.scores is not None
    score = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    merges = json.loads((STORIES / "tokenizer.json").read_text())["model"]["merges"]
    made = [score[left + right] for left, right in merges]
    assert made == sorted(made, reverse=True)
    assert len(set(made)) == len({left + right for left, right in merges})
    assert vocabulary.types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert vocabulary.types[258] == TokenType.BYTE
    assert vocabulary.types[259] == TokenType.NORMAL


@pytest.mark.parametrize(("version", "pieces"), [("v1", 32000), ("v3", 32768)])
def test_a_lone_tokenizer_model(tmp_path: Path, version: str, pieces: int) -> None:
    shutil.copyfile(MATERIAL / "mistral" / f"tokenizer.model.{version}", tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    vocabulary = read(tmp_path, rows=pieces + 2)
    assert vocabulary.tokens[:3] == ["<unk>", "<s>", "</s>"]
    assert vocabulary.types[:3] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    assert vocabulary.types[-1] == TokenType.UNUSED
    assert vocabulary.special == {"bos": 1, "eos": 2}
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (True, False, True)
    assert vocabulary.scores is not None
    first = vocabulary.tokens.index("▁t")
    assert vocabulary.scores[first] > vocabulary.scores[first + 1], "earlier merges have higher scores"


def test_a_damaged_tokenizer_model_is_refused(tmp_path: Path) -> None:
    data = (MATERIAL / "mistral" / "tokenizer.model.v1").read_bytes()
    path = tmp_path / "tokenizer.model"
    for damaged in (b"", b"\xff" * 100, data[:1000], data[: len(data) // 2], b"\x0b" + data):
        path.write_bytes(damaged)
        with pytest.raises(InputMissingError, match=r"not a whole|expected a BPE"):
            read_pieces(path)
