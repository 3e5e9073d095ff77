"""A frozen linear layer with its LoRA adapter as one autograd function.

    y = x W^T + b + s (x A^T) B^T

On a grid (`Frozen.on_grid`) W already has the adapter in it, rounded: y = x W^T + b, and the gradients of A and B are
those of the unrounded sum (straight through).

PEFT writes this as separate modules: a scaled copy and a sum of output size in the forward pass, and autograd keeps
both branches' inputs. Here the adapter is added in place, and only x and x A^T are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qdpo.engine.casts import Casts
from qdpo.engine.frozen import Frozen


class LoraWeights:
    """One adapter of one layer in the type of a computation.

    Attributes:
        a: (r, in).
        b: (out, r).
        scale: lora_alpha / r.
    """

    __slots__ = ("a", "b", "scale")

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        self.a, self.b, self.scale = a, b, scale

    def scaled(self, value: Tensor) -> Tensor:
        """The value times the scale, in place."""
        return value if self.scale == 1.0 else value.mul_(self.scale)


def lora_forward(x: Tensor, frozen: Frozen, lora: LoraWeights) -> tuple[Tensor, Tensor]:
    """(N, out) output and (N, r) projection x A^T."""
    y = frozen(x)
    projected = x @ lora.a.t()
    if frozen.on_grid is None:
        y.addmm_(projected, lora.b.t(), alpha=lora.scale)
    return y, projected


def lora_weight_gradients(g: Tensor, x: Tensor, projected: Tensor, lora: LoraWeights) -> tuple[Tensor, Tensor, Tensor]:
    """From (N, out) gradients: (N, r) gradient of x A^T, (r, in) of A, (out, r) of B."""
    inner = lora.scaled(g @ lora.b)
    return inner, inner.t() @ x, lora.scaled(g.t() @ projected)


def lora_input_gradient(g: Tensor, inner: Tensor, frozen: Frozen, lora: LoraWeights) -> Tensor:
    """(N, in) gradient of x."""
    gradient = g @ frozen.weight(g.dtype)
    return gradient if frozen.on_grid is not None else gradient.addmm_(inner, lora.a)


def add_lora_input_gradient(total: Tensor, g: Tensor, inner: Tensor, frozen: Frozen, lora: LoraWeights) -> Tensor:
    """`lora_input_gradient` added to another gradient of the same x, in place."""
    total.addmm_(g, frozen.weight(g.dtype))
    return total if frozen.on_grid is not None else total.addmm_(inner, lora.a)


class FusedLora(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T for x of any shape (..., in)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, frozen: Frozen, scale: float, dtype: torch.dtype, casts: Casts
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        lora = LoraWeights(casts(a, dtype), casts(b, dtype), scale)
        with torch.autocast(x.device.type, enabled=False):
            y, projected = lora_forward(rows, frozen, lora)
        ctx.save_for_backward(rows, projected, a, b)
        ctx.frozen, ctx.scale, ctx.shape, ctx.type, ctx.casts = frozen, scale, x.shape, x.dtype, casts
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, projected, a, b = ctx.saved_tensors
        g = grads[0].reshape(-1, grads[0].shape[-1]).to(rows.dtype)
        lora = LoraWeights(ctx.casts(a, rows.dtype), ctx.casts(b, rows.dtype), ctx.scale)
        inner, grad_a, grad_b = lora_weight_gradients(g, rows, projected, lora)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = lora_input_gradient(g, inner, ctx.frozen, lora).view(ctx.shape).to(ctx.type)
        return grad_x, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None, None, None
