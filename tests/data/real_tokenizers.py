"""Real tokenizers as fast tokenizers: Mistral v1, GPT-2, Llama's SPM, stories260K."""

from __future__ import annotations

from functools import cache
from typing import Any

from gguf import GGUFReader
from materials import MATERIAL, STORIES, llama_cpp
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from qdpo.export.gguf.sentencepiece import read_pieces

NAMES = ("mistral-v1", "gpt2", "llama-spm", "stories260K")


@cache
def load(name: str) -> PreTrainedTokenizerBase:
    """One of `NAMES`; GPT-2's and Llama's skip the test where llama.cpp's files are not at hand."""
    if name == "stories260K":
        return AutoTokenizer.from_pretrained(STORIES)
    if name == "mistral-v1":
        pieces = read_pieces(MATERIAL / "mistral" / "tokenizer.model.v1")
        return _spm(pieces.texts, pieces.scores, pieces.types, everywhere=False)
    if name == "gpt2":
        return _gpt2(*_of_gguf("gpt-2", "tokens", "merges"))
    return _spm(*_of_gguf("llama-spm", "tokens", "scores", "token_type"), everywhere=True)


def _of_gguf(name: str, *keys: str) -> list[Any]:
    """Parts of the tokenizer in one of llama.cpp's files of vocabularies."""
    fields = GGUFReader(llama_cpp(f"ggml-vocab-{name}.gguf")).fields
    return [fields[f"tokenizer.ggml.{key}"].contents() for key in keys]


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


def _gpt2(tokens: list[str], merges: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(left, right) for left, right in map(str.split, merges)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
