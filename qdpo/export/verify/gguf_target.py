"""A GGUF file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch

from qdpo.export.gguf.convert import FACTORS, GgufFile, mapped_tensors, types_of
from qdpo.export.gguf.encode import decode
from qdpo.export.gguf.families import family_of, from_gguf, to_gguf
from qdpo.export.gguf.format import general_of, vocabulary_of
from qdpo.export.gguf.kinds import KINDS
from qdpo.export.gguf.rope import frequency_factors
from qdpo.export.merged import MergedModel
from qdpo.export.request import Request
from qdpo.export.source import Run
from qdpo.export.verify.checks import Check, from_problems
from qdpo.export.verify.compare import compare_all
from qdpo.export.verify.scorers import Encode, LlamaScorer, Scorer, has_llama_cpp
from qdpo.export.verify.target import torch_scorer
from qdpo.export.whole import computing_dtype, model_with

NO_LLAMA_CPP = "llama-cpp-python is not installed (pip install 'qdpo[verify]')"


@dataclass
class GgufTarget:
    """A GGUF file."""

    path: Path
    kind: str
    run: Run
    merge_base: Any

    @property
    def name(self) -> str:
        return self.path.name

    def read_back(self, model: MergedModel) -> list[Check]:
        reader = gguf.GGUFReader(self.path)
        found = {tensor.name: tensor for tensor in reader.tensors}
        family = family_of(model.config)
        tensors = mapped_tensors(family, model)
        types = types_of(KINDS[self.kind], tensors, model.config["num_hidden_layers"])
        present = [tensor for tensor in tensors if tensor.gguf_name in found]
        problems = [
            f"{t.gguf_name} is {found[t.gguf_name].tensor_type.name}, expected {types[t.name].name}"
            for t in present
            if found[t.gguf_name].tensor_type != types[t.name]
        ]
        by_name = {tensor.name: tensor for tensor in present}

        def stored(name: str) -> tuple[torch.Tensor, str]:
            tensor = found[by_name[name].gguf_name]
            shape = tuple(int(size) for size in reversed(tensor.shape))
            return decode(tensor.data, tensor.tensor_type, shape), tensor.tensor_type.name

        comparison = compare_all(by_name, stored, lambda name: to_gguf(family, model.config, name, model.read(name)))
        factors = frequency_factors(model.config)
        if factors is not None:
            present_factors = torch.from_numpy(found[FACTORS].data.copy()) if FACTORS in found else torch.zeros(0)
            comparison.add(FACTORS, present_factors, torch.from_numpy(factors), "F32")
        comparison.problems += problems
        expected = {tensor.gguf_name for tensor in tensors} | ({FACTORS} if factors is not None else set())
        read_back = comparison.check(expected - found.keys(), found.keys() - expected)
        return [read_back, self._settings(reader, model)]

    def _settings(self, reader: gguf.GGUFReader, model: MergedModel) -> Check:
        """Compare all keys, the vocabulary and the template among them, with what a fresh conversion would write."""
        request = Request(self.run, self.path.parent, self.merge_base)
        vocabulary = vocabulary_of(self.run, model)
        fresh = GgufFile(self.path, KINDS[self.kind], model, vocabulary, general_of(request)).keys()
        found = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        differ = [key for key in sorted(fresh.keys() | found.keys()) if not _same(fresh.get(key), found.get(key))]
        problems = [
            f"{key} differs" if key in fresh and key in found else f"{key} is missing or extra" for key in differ
        ]
        return from_problems(
            "settings", problems, f"{len(found)} keys equal the model's, {len(vocabulary.tokens):,} tokens"
        )

    def encoder(self) -> tuple[Encode | None, str]:
        if not has_llama_cpp():
            return None, NO_LLAMA_CPP
        import llama_cpp

        llama = llama_cpp.Llama(model_path=str(self.path), vocab_only=True, verbose=False)

        def encode(text: str) -> list[int]:
            return [int(i) for i in llama.tokenize(text.encode(), add_bos=False, special=True)]

        return encode, "llama.cpp"

    def not_run(self) -> list[Check]:
        if has_llama_cpp():
            return []
        return [Check("parity in llama.cpp", None, f"{NO_LLAMA_CPP}; the dequantised tensors are scored in torch")]

    @contextlib.contextmanager
    def scorer(self, model: MergedModel, context: int) -> Iterator[Scorer]:
        if has_llama_cpp():
            scorer = LlamaScorer(self.path, context)
            try:
                yield scorer
            finally:
                scorer.close()
            return
        dequantised = model_with(model.config, dequantised_state(self.path, model), computing_dtype())
        with torch_scorer(dequantised, "torch on dequantised tensors") as torched:
            yield torched


def dequantised_state(path: Path, model: MergedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """A GGUF file's weights under transformers' names."""
    family = family_of(model.config)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for mapped in mapped_tensors(family, model):
        tensor = found[mapped.gguf_name]
        values = decode(tensor.data, tensor.tensor_type, tuple(int(size) for size in reversed(tensor.shape)))
        yield mapped.name, from_gguf(family, model.config, mapped.name, values)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return bool(one == other)
