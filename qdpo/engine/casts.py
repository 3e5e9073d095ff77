"""The adapter's weights in the type of the computation, made once a pass.

The weights are fp32 and the products are not. Cast where they are used, each would be cast three times a pass (forward,
second run of a checkpointed layer, backward), in a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Casts:
    """Copies of weights in half precision.

    Attributes:
        weights: what is copied.
    """

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self._copies: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}

    def add(self, weights: Sequence[Tensor]) -> None:
        """Take more weights in."""
        self.weights = list({id(weight): weight for weight in [*self.weights, *weights]}.values())

    def refresh(self, device: str) -> None:
        """Copy all weights anew in the type of autocast; without autocast there are no copies.

        An optimizer may change weights without torch's knowledge (bitsandbytes' kernels do), so this is not left out
        when their version is the old one.

        Args:
            device: type of the device.
        """
        if not torch.is_autocast_enabled(device):
            self._copies.clear()
            return
        dtype = torch.get_autocast_dtype(device)
        wanted = [weight for weight in self.weights if weight.dtype != dtype]
        with torch.no_grad():
            for weight in wanted:
                copy = self._copies.get(id(weight))
                if copy is None or copy.dtype != dtype or copy.device != weight.device:
                    self._copies[id(weight)] = torch.empty_like(weight, dtype=dtype, requires_grad=False)
            if wanted:
                torch._foreach_copy_([self._copies[id(weight)] for weight in wanted], wanted)
        self._versions = {id(weight): weight._version for weight in wanted}

    def __call__(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A weight in a type: its copy where there is one of this pass, else a new one."""
        copy = self._copies.get(id(weight))
        if copy is not None and copy.dtype == dtype and self._versions.get(id(weight)) == weight._version:
            return copy
        return weight.detach().to(dtype)
