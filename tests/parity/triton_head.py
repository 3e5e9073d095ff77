"""TRL's own Triton kernel on a CPU, in Triton's interpreter: a process of its own, since it is chosen by environment.

    TRITON_INTERPRET=1 python tests/parity/triton_head.py results.safetensors

writes what the kernel says of every case. The cases and their inputs are here too, for whoever compares.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

ROWS, WIDTH, VOCABULARY = 24, 64, 5000
TILE = 2048
"""Vocabulary entries of one product: three tiles, the last one not full, of up to two blocks each."""
STATISTICS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""What TRL returns beside the log-probability, in its order."""


@dataclass(frozen=True)
class Case:
    """An output head and the type that it computes in.

    Attributes:
        dtype: of states, weight and bias.
        softcap: soft-capping of the logits; None for none.
        scale: factor of the logits.
        biased: there is a bias.
    """

    dtype: torch.dtype
    softcap: float | None
    scale: float
    biased: bool

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}, {'plain' if self.softcap is None else 'soft-capped'}"


HEADS = ((None, 1.0, False), (8.0, 0.75, True))
CASES = tuple(Case(dtype, *head) for dtype, head in itertools.product((torch.float32, torch.bfloat16), HEADS))


@dataclass(frozen=True)
class Inputs:
    """What both sides are given.

    Attributes:
        hidden: (rows, width) a leaf with gradient.
        weight: (vocabulary, width).
        bias: (vocabulary,) or None.
        targets: (rows,), of which every second is the likeliest token.
        upstream: (rows,) gradient of each log-probability.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    upstream: Tensor


def inputs_of(case: Case) -> Inputs:
    """The same numbers in every process."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight, bias, upstream = (
        torch.randn(*shape, generator=draw) for shape in ((ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,), (ROWS,))
    )
    hidden, weight, bias = hidden.to(case.dtype), (weight * 0.3).to(case.dtype), bias.to(case.dtype)
    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=draw)
    targets[::2] = (hidden.float() @ weight.float().T + case.biased * bias.float()).argmax(-1)[::2]
    return Inputs(hidden.requires_grad_(), weight, bias if case.biased else None, targets, upstream)


def main(out: str) -> None:
    """Run every case and write the results."""
    import trl.kernels.chunked_logprob as kernels
    from triton.runtime.interpreter import InterpretedFunction

    module: Any = kernels
    assert isinstance(module._forward_kernel, InterpretedFunction)
    # from 1.16 on TRL computes in torch where there is no GPU: not here
    module._use_triton = lambda device: True
    module._forward_tile = module._backward_tile = None
    results = {}
    for case in CASES:
        given = inputs_of(case)
        logps, *statistics = module.ChunkedLogProbFunction.apply(
            given.hidden, given.weight, given.bias, given.targets, 1.0, TILE, case.softcap, case.scale, STATISTICS
        )
        (logps * given.upstream).sum().backward()
        assert given.hidden.grad is not None
        found = dict(zip(STATISTICS, statistics, strict=True)) | {"logps": logps, "gradient": given.hidden.grad}
        results |= {f"{case}/{name}": value.detach().contiguous() for name, value in found.items()}
    save_file(results, out)


if __name__ == "__main__":
    main(sys.argv[1])
