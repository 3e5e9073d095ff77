"""A GGUF adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch

from qdpo.export.adapter import Adapter
from qdpo.export.gguf.convert import mapped_tensors
from qdpo.export.gguf.encode import decode
from qdpo.export.gguf.families import family_of, from_gguf
from qdpo.export.merged import MergedModel
from qdpo.export.source import Run
from qdpo.export.tensors import TensorFiles
from qdpo.export.verify.checks import Check
from qdpo.export.verify.compare import compare_all
from qdpo.export.verify.scorers import Encode, Scorer
from qdpo.export.verify.target import torch_scorer
from qdpo.export.whole import computing_dtype, model_with


@dataclass
class LoraTarget:
    """A GGUF adapter."""

    path: Path
    kind: str
    run: Run

    @property
    def name(self) -> str:
        return self.path.name

    def _pairs(self) -> tuple[dict[str, torch.Tensor], float]:
        reader = gguf.GGUFReader(self.path)
        alpha = float(reader.fields["adapter.lora.alpha"].contents())
        tensors = {
            t.name: decode(t.data, t.tensor_type, tuple(int(size) for size in reversed(t.shape)))
            for t in reader.tensors
        }
        return tensors, alpha

    def _deltas(self, model: MergedModel) -> Iterator[tuple[str, torch.Tensor]]:
        """What the adapter adds to each tensor, under transformers' names."""
        tensors, alpha = self._pairs()
        family = family_of(model.config)
        for mapped in mapped_tensors(family, model):
            a, b = (tensors.get(f"{mapped.gguf_name}.lora_{side}") for side in "ab")
            if a is not None and b is not None:
                yield mapped.name, from_gguf(family, model.config, mapped.name, alpha / a.shape[0] * (b @ a))

    def read_back(self, model: MergedModel) -> list[Check]:
        expected = {
            name: scale * (b.float() @ a.float()) for name, (a, b, scale) in Adapter(self.run.adapter).pairs().items()
        }
        deltas = dict(self._deltas(model))
        common = [name for name in expected if name in deltas]
        comparison = compare_all(common, lambda name: (deltas[name], self.kind.upper()), expected.__getitem__)
        return [comparison.check(expected.keys() - deltas.keys(), deltas.keys() - expected.keys())]

    def encoder(self) -> tuple[Encode | None, str]:
        return None, "an adapter has no tokenizer; the base's GGUF has it"

    def not_run(self) -> list[Check]:
        return [Check("parity in llama.cpp", None, "needs a GGUF of the base beside it; scored in torch instead")]

    @contextlib.contextmanager
    def scorer(self, model: MergedModel, context: int) -> Iterator[Scorer]:
        base, deltas = TensorFiles.of_folder(self.run.base), dict(self._deltas(model))

        def state() -> Iterator[tuple[str, torch.Tensor]]:
            for name in base:
                yield name, base.read(name).float() + deltas.get(name, torch.zeros(()))

        with torch_scorer(model_with(model.config, state(), computing_dtype()), "torch: base plus adapter") as scorer:
            yield scorer
