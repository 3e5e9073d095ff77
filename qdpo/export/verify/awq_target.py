"""A folder of 4-bit AWQ weights, in compressed-tensors' layout or AutoAWQ's."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from qdpo.console import note
from qdpo.export.awq.format import write_awq
from qdpo.export.awq.packing import AUTOAWQ_PARTS, COMPRESSED_PARTS, from_autoawq, from_compressed
from qdpo.export.formats import Request
from qdpo.export.output import RECORD
from qdpo.export.source import TrainedRun
from qdpo.export.verify.bench import Bench
from qdpo.export.verify.checks import Check, from_problems
from qdpo.export.verify.projection import Projection, read_both
from qdpo.export.verify.readback import Expected, compare_smoothed
from qdpo.export.verify.scorers import Scorer
from qdpo.export.verify.target import BESIDE, FolderTarget, Target, counted
from qdpo.export.verify.vllm_engine import vllm_scorer
from qdpo.export.whole import computing_dtype
from qdpo.files import read_json
from qdpo.model.merged import MergedModel
from qdpo.model.tensors import TensorFiles

INSTALL = "pip install 'qdpo[awq]'"


class AwqTarget(FolderTarget):
    """4-bit AWQ weights."""

    @classmethod
    def of_export(cls, folder: Path, record: dict[str, Any], run: TrainedRun) -> list[Self]:
        way = (record.get("rounding") or {}).get("way", "nearest")
        return [cls(folder, "awq", run, record.get("merge_base"), way)]

    @property
    def name(self) -> str:
        return "awq"

    def read_back(self, model: MergedModel, twin: Target | None, projection: Projection) -> list[Check]:
        weights, bare = AwqWeights(self.path), self.bare_model()
        beside = AwqWeights(twin.path) if twin else None
        record = read_json(self.path / RECORD)

        def expected(name: str) -> Expected:
            merged, base = read_both(model, bare, name)
            rounded = partial(beside.read, name) if beside and name in beside.names else None
            return Expected(merged.float(), None if base is None else merged - base, rounded)

        with counted(weights.read, len(weights.names)) as read:
            comparison = compare_smoothed(model, weights.names, read, expected, projection)
        problems = self._settings_problems(model, added="quantization_config")
        stored = self._quantization()
        groups = stored.get("config_groups", {}).get("group_0", {}).get("weights", stored)
        for key, found, wanted in (
            ("group_size", groups.get("group_size"), record["group_size"]),
            ("bits", groups.get("num_bits", groups.get("bits")), 4),
        ):
            if found != wanted:
                problems.append(f"config.json: quantization_config has {key} {found}")
        if len(weights.layers) != record["layers"]:
            problems.append(f"{len(weights.layers)} layers are in 4 bits, export.json says {record['layers']}")
        good = f"{len(weights.layers)} layers in groups of {record['group_size']}, {stored['quant_method']}"
        return [
            comparison.check(set(model.names) - weights.names, weights.names - set(model.names)),
            from_problems("settings", problems, f"{good}; all other settings equal the base's"),
        ]

    def not_run(self) -> list[Check]:
        if reason := self._no_engine():
            return [Check("parity in transformers", None, f"{reason}; the dequantised tensors are scored in torch")]
        return []

    def twin(self, scratch: Path) -> Target:
        assert self.merge_base is not None
        run, layout = self.run.without_adapter(), read_json(self.path / RECORD)["layout"]
        note(BESIDE)
        folder = write_awq(Request(run, scratch / "awq", self.merge_base, awq_layout=layout, rounding=self.way))
        return AwqTarget(folder, self.kind, run, self.merge_base, self.way)

    def _quantization(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.path / "config.json")["quantization_config"]
        return found

    def _no_engine(self) -> str | None:
        method = self._quantization()["quant_method"]
        if method != "compressed-tensors":
            return f"transformers needs gptqmodel for {method!r}, which does not install beside these versions"
        if importlib.util.find_spec("compressed_tensors") is None:
            return f"compressed-tensors is not installed ({INSTALL})"
        return None

    def scorer(self, model: MergedModel, bench: Bench) -> contextlib.AbstractContextManager[Scorer]:
        if bench.vllm:
            return vllm_scorer(bench.vllm, self.path, "auto", bench.context)
        dtype = computing_dtype()
        weights, engine = AwqWeights(self.path), "torch on dequantised tensors"
        if self._no_engine() is None:
            weights = AwqWeights(self.path, decompressed_by_the_engine(self._quantization(), dtype))
            engine = "transformers + compressed-tensors"
        return bench.torch_scorer(model.config, weights.names, weights.read, dtype, engine)


def decompressed_by_the_engine(
    settings: dict[str, Any], dtype: torch.dtype
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """What transformers computes with: compressed-tensors' own way from the stored parts of a layer to its weight.

    Args:
        settings: the export's `quantization_config`.
        dtype: what it computes in.
    """
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    (scheme,) = QuantizationConfig.model_validate(settings).config_groups.values()

    def weight(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        parts = {**parts, "weight_scale": parts["weight_scale"].to(dtype)}
        decompressed: torch.Tensor = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        return decompressed

    return weight


def dequantised(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """A layer's weight from the parts that compressed-tensors stores, float32."""
    return from_compressed(parts).dequantised()


class AwqWeights:
    """The tensors of an AWQ folder under the names that the model has for them, dequantised when they are read.

    Args:
        folder: a folder in either layout.
        decompress: makes a weight of the parts that compressed-tensors stores.

    Attributes:
        layers: names of the layers in 4 bits.
        names: names of all tensors; a layer in 4 bits by that of its weight.
    """

    def __init__(
        self, folder: Path, decompress: Callable[[dict[str, torch.Tensor]], torch.Tensor] = dequantised
    ) -> None:
        self._files, self._decompress = TensorFiles.of_folder(folder), decompress
        self.layers = {
            name.rpartition(".")[0] for name in self._files if name.rpartition(".")[2] in ("weight_packed", "qweight")
        }
        others = {name for name in self._files if name.rpartition(".")[0] not in self.layers or name.endswith(".bias")}
        self.names = others | {f"{layer}.weight" for layer in self.layers}

    def read(self, name: str) -> torch.Tensor:
        """One tensor, float32 or what the engine makes."""
        layer = name.removesuffix(".weight")
        if layer not in self.layers:
            return self._files.read(name).float()
        if f"{layer}.qweight" in self._files:
            return from_autoawq({part: self._files.read(f"{layer}.{part}") for part in AUTOAWQ_PARTS}).dequantised()
        return self._decompress({part: self._files.read(f"{layer}.{part}") for part in COMPRESSED_PARTS})
