"""A gated MLP with an adapter on all three of its layers as one autograd function.

    y = down(act(gate(x)) * up(x))

Kept for the backward pass: x, the outputs of gate and up, and three projections of rank r. The product that enters
`down` is rebuilt. In the second run of a checkpointed layer the output itself is not needed (the residual sum keeps
nothing), so the product with `down` is left out there: a quarter of the layer's work.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qdpo.engine.casts import Casts
from qdpo.engine.frozen import Frozen
from qdpo.engine.fused_linear import (
    LoraWeights,
    add_lora_input_gradient,
    lora_forward,
    lora_input_gradient,
    lora_weight_gradients,
)
from qdpo.engine.recompute import running_again

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")

PLACEHOLDER = 0.0
"""What stands in for an output that nobody looks at; the tests put NaN here."""


def activate(kind: str, x: Tensor) -> Tensor:
    """One of `ACTIVATIONS`."""
    if kind == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def activation_gradient(kind: str, g: Tensor, x: Tensor) -> Tensor:
    """The gradient of `activate` at x, given the gradient g of its result."""
    if kind == "silu":
        return torch.ops.aten.silu_backward(g, x)
    return torch.ops.aten.gelu_backward(g, x, approximate="tanh" if kind == "gelu_tanh" else "none")


class FusedMlp(torch.autograd.Function):
    """The MLP for x of any shape (..., in)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: tuple[Frozen, Frozen, Frozen],
        scales: tuple[float, float, float],
        kind: str,
        dtype: torch.dtype,
        output_unused_when_recomputed: bool,
        casts: Casts,
        *weights: Tensor,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        gate, up, down = _adapters(weights, scales, dtype, casts)
        with torch.autocast(x.device.type, enabled=False):
            e, e_projected = lora_forward(rows, layers[0], gate)
            v, v_projected = lora_forward(rows, layers[1], up)
            product = activate(kind, e).mul_(v)
            if output_unused_when_recomputed and running_again():
                y = rows.new_full((1, 1), PLACEHOLDER).expand(rows.shape[0], layers[2].module.out_features)
                y_projected = product @ down.a.t()
            else:
                y, y_projected = lora_forward(product, layers[2], down)
        ctx.save_for_backward(rows, e, v, e_projected, v_projected, y_projected, *weights)
        ctx.layers, ctx.scales, ctx.kind, ctx.shape, ctx.type = layers, scales, kind, x.shape, x.dtype
        ctx.casts = casts
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, e, v, e_projected, v_projected, y_projected, *weights = ctx.saved_tensors
        gate, up, down = _adapters(weights, ctx.scales, rows.dtype, ctx.casts)
        gate_layer, up_layer, down_layer = ctx.layers
        g = grads[0].reshape(-1, grads[0].shape[-1]).to(rows.dtype)
        activated = activate(ctx.kind, e)
        inner, grad_down_a, grad_down_b = lora_weight_gradients(g, activated * v, y_projected, down)
        g_product = lora_input_gradient(g, inner, down_layer, down)
        g_up = activated.mul_(g_product)
        g_gate = activation_gradient(ctx.kind, g_product.mul_(v), e)
        inner, grad_up_a, grad_up_b = lora_weight_gradients(g_up, rows, v_projected, up)
        grad_x = lora_input_gradient(g_up, inner, up_layer, up)
        inner, grad_gate_a, grad_gate_b = lora_weight_gradients(g_gate, rows, e_projected, gate)
        add_lora_input_gradient(grad_x, g_gate, inner, gate_layer, gate)
        gradients = (grad_gate_a, grad_gate_b, grad_up_a, grad_up_b, grad_down_a, grad_down_b)
        return (
            grad_x.view(ctx.shape).to(ctx.type),
            *(None,) * 6,
            *(gradient.to(weight.dtype) for gradient, weight in zip(gradients, weights, strict=True)),
        )


def _adapters(
    weights: tuple[Tensor, ...] | list[Tensor], scales: tuple[float, float, float], dtype: torch.dtype, casts: Casts
) -> list[LoraWeights]:
    cast = [casts(weight, dtype) for weight in weights]
    return [LoraWeights(cast[2 * i], cast[2 * i + 1], scales[i]) for i in range(3)]
