"""Real tokenizers from the shared folder, as fast tokenizers: Mistral v1, GPT-2, Llama's SPM, stories260K."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

NAMES = ("mistral-v1", "gpt2", "llama-spm", "stories260K")


@cache
def load(name: str, shared: Path) -> PreTrainedTokenizerBase:
    """One of `NAMES`; skips the test when its files are not there."""
    folder = shared / "data" / "tokenizers"
    if name == "stories260K":
        return AutoTokenizer.from_pretrained(_present(shared / "models" / "stories260K"))
    if name == "gpt2":
        return _gpt2(_present(folder / "gpt2"))
    if name == "mistral-v1":
        from qdpo.export.gguf.sentencepiece import read_pieces

        pieces = read_pieces(_present(folder / "mistral" / "tokenizer.model.v1"))
        return _spm(pieces.texts, pieces.scores, pieces.types, everywhere=False)
    gguf = pytest.importorskip("gguf", reason="reads Llama's vocabulary from a GGUF file")
    fields = gguf.GGUFReader(_present(folder / "llama_spm" / "ggml-vocab-llama-spm.gguf")).fields
    return _spm(
        *(fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type")), everywhere=True
    )


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"there is no {path.name} in the shared folder")
    return path


def _spm(texts: list[str], scores: list[float], types: list[int], *, everywhere: bool) -> PreTrainedTokenizerFast:
    """A sentencepiece BPE: its merges are the pairs of pieces that make a piece, best score first.

    `everywhere`: a space is put in front of every text between special tokens (Llama's first converter), or only at
    the beginning.
    """
    ids = {text: i for i, text in enumerate(texts)}
    merges = []
    for i, (text, kind) in enumerate(zip(texts, types, strict=True)):
        if kind == 1:
            pairs = ((text[:k], text[k:]) for k in range(1, len(text)))
            merges += [(-scores[i], ids[a], ids[b], a, b) for a, b in pairs if a in ids and b in ids]
    merges.sort()
    tokenizer = Tokenizer(
        models.BPE(ids, [merge[3:] for merge in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if everywhere:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    special = [texts[i] for i, kind in enumerate(types) if kind in (2, 3)]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _gpt2(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "gpt2_vocab.json"), str(folder / "gpt2_merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
