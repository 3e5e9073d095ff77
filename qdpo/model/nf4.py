"""What 4-bit NF4 storage does to a weight: the values that the adapter was trained on.

During QLoRA training a linear layer computes with the dequantised 4-bit weight, which differs from the 16-bit weight by
the quantisation error. An adapter merged into the dequantised weight gives the trained policy; quantising again after
the merge would erase the adapter, whose changes are smaller than an NF4 step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from qdpo.errors import InputMissingError
from qdpo.model.rounding import dequantize, quantize


@dataclass(frozen=True)
class Quantization:
    """How the base was loaded for training, as `run.json` records it.

    Attributes:
        method: `nf4` or `none`.
        modules: full names of the linear layers that were quantised.
        load_dtype: dtype that the base's tensors were cast to on loading, before quantisation.
        double_quant: whether the block scales were quantised too.
        blocksize: weights per scale.
    """

    method: str
    modules: frozenset[str]
    load_dtype: torch.dtype
    double_quant: bool
    blocksize: int

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Quantization:
        """Read the `quantization` entry of `run.json`.

        Raises:
            InputMissingError: a field is missing, or the method is unknown.
        """
        try:
            method = record["method"]
            if method not in ("nf4", "none"):
                raise ValueError(f"method {method!r} is unknown to this version of qdpo")
            if method == "nf4" and not record["modules"]:
                raise ValueError("method is nf4, but no quantised modules are listed")
            return cls(
                method=method,
                modules=frozenset(record["modules"]) if method == "nf4" else frozenset(),
                load_dtype={"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[
                    record["load_dtype"]
                ],
                double_quant=bool(record.get("double_quant", True)),
                blocksize=int(record.get("blocksize", 64)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputMissingError(
                f"run.json does not say how the base was quantised: {error!r}",
                "--merge-base original does not need it",
            ) from error

    @property
    def rounded_already(self) -> Quantization:
        """The same for a base whose layers have been rounded: its tensors take the type that they were loaded in."""
        return replace(self, modules=frozenset())

    def as_trained(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A base tensor as the training saw it, in float32.

        Args:
            name: the tensor's name in the checkpoint.
            weight: as stored.
        """
        weight = weight.to(self.load_dtype)
        if name.removesuffix(".weight") in self.modules:
            weight = self._round_trip(weight)
        return weight.float()

    def _round_trip(self, weight: torch.Tensor) -> torch.Tensor:
        """Quantized and back, on the GPU where there is one: a 7B model takes minutes on a CPU."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return dequantize(*quantize(weight.to(device), self.blocksize, self.double_quant)).cpu()
