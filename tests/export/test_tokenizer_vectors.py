"""Real tokenizers in llama.cpp: the tokens of its own test vectors, and of seventy tricky texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
from data import real_tokenizers
from export import families, toys, toys_gguf
from materials import MATERIAL, STORIES
from materials import llama_cpp as llama_cpp_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from qdpo.export.formats import Request
from qdpo.export.gguf.format import write_gguf
from qdpo.export.source import load_run
from qdpo.export.verify.tokens import TRICKY

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python (pip install 'qdpo[verify]')")

TEXTS = [text for text in TRICKY if text]


class LlamaTokenizer:
    """The tokenizer of a GGUF file in llama.cpp."""

    def __init__(self, path: Path) -> None:
        self._llama = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)

    def __call__(self, text: str, special: bool = True) -> list[int]:
        return [int(i) for i in self._llama.tokenize(text.encode(), add_bos=False, special=special)]

    def __enter__(self) -> LlamaTokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._llama.close()


def exported(folder: Path, rows: int, tokenizer: PreTrainedTokenizerFast, architecture: str = "llama") -> Path:
    """A one-layer model with a tokenizer, as GGUF."""
    run = toys_gguf.make_run(folder, families.config(architecture, vocab_size=rows, num_hidden_layers=1))
    tokenizer.save_pretrained(run / "adapter")
    out = write_gguf(Request(load_run(run), run / "export" / "gguf", "original", quants=("q8_0",)))
    return next(out.glob("*.gguf"))


def vectors(vocabulary: Path) -> list[tuple[str, list[int]]]:
    """llama.cpp's own test texts and their tokens."""
    texts = Path(f"{vocabulary}.inp").read_text().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{vocabulary}.out").read_text().splitlines()
    ids = [[int(number) for number in line.split()] for line in lines]
    return [(text, one) for text, one in zip(texts, ids, strict=False) if text]


def differing(path: Path, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[str]:
    with LlamaTokenizer(path) as encode:
        return [text for text in texts if encode(text) != tokenizer.encode(text, add_special_tokens=False)]


def test_the_texts_are_seventy() -> None:
    assert len(TRICKY) == len(set(TRICKY)) == 70


def test_byte_level_toy(tmp_path: Path) -> None:
    tokenizer = toys.byte_tokenizer()
    assert differing(exported(tmp_path, toys.VOCABULARY, tokenizer), tokenizer, TEXTS) == []


def test_gpt2(tmp_path: Path) -> None:
    fast = real_tokenizers.load("gpt2")
    path = exported(tmp_path, 50257, fast)
    with LlamaTokenizer(path) as encode:
        found = vectors(llama_cpp_file("ggml-vocab-gpt-2.gguf"))
        assert len(found) > 30
        for text, ids in found:
            assert encode(text) == ids == fast.encode(text), text
    assert differing(path, fast, TEXTS) == []


def llama_tokenizer(vocabulary: Path) -> PreTrainedTokenizerFast:
    """Llama's tokenizer as transformers has it, from a GGUF file's tokens and scores: merges come in order of score."""
    fields = gguf.GGUFReader(vocabulary).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    scores: list[float] = fields["tokenizer.ggml.scores"].contents()
    kinds: list[int] = fields["tokenizer.ggml.token_type"].contents()
    vocab = {token: number for number, token in enumerate(tokens)}
    merges: list[tuple[float, int, int, str, str]] = []
    for token, number in vocab.items():
        if kinds[number] != gguf.TokenType.NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-scores[number], vocab[left], vocab[right], left, right))
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    tokenizer = Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_llama_sentencepiece(tmp_path: Path) -> None:
    vocabulary = llama_cpp_file("ggml-vocab-llama-spm.gguf")
    fast = llama_tokenizer(vocabulary)
    path = exported(tmp_path, 32000, fast)
    with LlamaTokenizer(path) as encode:
        found = vectors(vocabulary)
        assert len(found) > 30
        for text, ids in found:
            assert encode(text) == ids, text
            assert fast.encode(text, add_special_tokens=False) == ids, text
    assert differing(path, fast, TEXTS) == []


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_mistral_from_json_equals_its_tokenizer_model(tmp_path: Path, version: str) -> None:
    """Both ways into GGUF, tokenizer.model with its scores and tokenizer.json with its merges, give the same tokens."""
    rows = {"v1": 32000, "v3": 32768}[version]
    run = toys_gguf.make_run(tmp_path / "model", families.config("mistral", vocab_size=rows, num_hidden_layers=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (run / "adapter" / name).unlink(missing_ok=True)
        (tmp_path / "model" / "base" / name).unlink(missing_ok=True)
    shutil.copyfile(MATERIAL / "mistral" / f"tokenizer.model.{version}", run / "adapter" / "tokenizer.model")
    specials: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    (run / "adapter" / "tokenizer_config.json").write_text(json.dumps(specials))
    out = write_gguf(Request(load_run(run), run / "export" / "gguf", "original", quants=("q8_0",)))
    path = next(out.glob("*.gguf"))
    fast = llama_tokenizer(path)
    again = exported(tmp_path / "json", rows, fast, "mistral")
    with LlamaTokenizer(path) as first, LlamaTokenizer(again) as second:
        for text in TEXTS:
            assert first(text) == second(text), text
    assert differing(again, fast, TEXTS) == []


def test_stories260k(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    assert differing(exported(tmp_path, 512, tokenizer), tokenizer, TEXTS) == []
