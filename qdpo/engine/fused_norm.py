"""RMSNorm as one autograd function that keeps its input and one number per row (Zhang and Sennrich, arXiv 1910.07467).

Written out, x / rms(x) * w keeps two or three fp32 copies of x for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FusedRmsNorm(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + eps) * w, or * (1 + w) as Gemma has it; w is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, plus_one: bool) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(exact)
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
        normed = wide * inverse
        # Llama rounds before it multiplies by w, Gemma after
        y = normed.mul_(1.0 + weight.to(exact)).to(x.dtype) if plus_one else normed.to(x.dtype) * weight
        ctx.save_for_backward(x, inverse, weight)
        ctx.plus_one = plus_one
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        factor = weight.to(inverse.dtype)
        g = grads[0].to(inverse.dtype) * (1.0 + factor if ctx.plus_one else factor)
        normed = x.to(inverse.dtype) * inverse
        g -= normed.mul_((g * normed).mean(-1, keepdim=True))
        return g.mul_(inverse).to(x.dtype), None, None, None
