"""A run's adapter as it is, on its 16-bit base: what vLLM serves without a merge."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Self

import torch
from transformers import AutoTokenizer

from qdpo.errors import InputMissingError
from qdpo.export.source import TrainedRun
from qdpo.export.verify.bench import Bench
from qdpo.export.verify.checks import Check
from qdpo.export.verify.projection import Projection
from qdpo.export.verify.scorers import Encode, Scorer
from qdpo.export.verify.target import Target
from qdpo.export.verify.vllm_engine import vllm_scorer
from qdpo.files import read_json
from qdpo.model.adapter import Adapter
from qdpo.model.merged import MergedModel


class AdapterTarget(Target):
    """The adapter beside its base."""

    in_vllm = True

    @classmethod
    def of_run(cls, run: TrainedRun) -> Self:
        """That of a run.

        Raises:
            InputMissingError: it changes more than weights of layers, which vLLM does not serve.
        """
        if not Adapter(run.adapter).has_deltas_only:
            raise InputMissingError(
                "the adapter has more than LoRA on weights (DoRA, biases, embeddings or whole tensors), which vLLM "
                "does not serve beside a base",
                "merge it: --format safetensors",
            )
        config = read_json(run.base / "config.json")
        return cls(run.adapter, str(config.get("dtype") or config.get("torch_dtype") or "auto"), run)

    @property
    def name(self) -> str:
        return "adapter"

    def read_back(self, model: MergedModel, twin: Target | None, projection: Projection) -> list[Check]:
        pairs = Adapter(self.path).pairs()
        for name, (a, b, scale) in pairs.items():
            delta = scale * (b.float() @ a.float())
            projection.add(name, delta, delta, delta)  # it is the change itself
        return [Check("read-back", True, f"the adapter itself: LoRA on {len(pairs)} tensors")]

    def twin(self, scratch: Path) -> Target:
        return BareBase(self.path, self.kind, self.run.without_adapter())

    def encoder(self) -> tuple[Encode | None, str]:
        tokenizer = AutoTokenizer.from_pretrained(self.path)
        return lambda text: [int(i) for i in tokenizer.encode(text, add_special_tokens=False)], "transformers"

    def scorer(self, model: MergedModel, bench: Bench) -> contextlib.AbstractContextManager[Scorer]:
        assert bench.vllm is not None
        ranks = [a.shape[0] for a, _, _ in Adapter(self.path).pairs().values()]
        return vllm_scorer(bench.vllm, self.run.base, self.dtype, bench.context, self.path, max(ranks))

    @property
    def dtype(self) -> str:
        """What vLLM computes in: its own choice for float32 is 16 bits."""
        return "float32" if self.kind == str(torch.float32).removeprefix("torch.") else "auto"


class BareBase(AdapterTarget):
    """The base without it."""

    def scorer(self, model: MergedModel, bench: Bench) -> contextlib.AbstractContextManager[Scorer]:
        assert bench.vllm is not None
        return vllm_scorer(bench.vllm, self.run.base, self.dtype, bench.context)
