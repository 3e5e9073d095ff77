"""Log-probabilities of completion tokens, without ever forming all logits.

The head is frozen and each scored row's upstream gradient is one number g, so d(logp)/dh = W[y] - p W can be formed in
the forward pass and only multiplied by g in the backward pass: two matrix products instead of three. p W is attention
with the head's rows as keys and values, and is summed up as FlashAttention does it (Dao et al., arXiv 2205.14135): tile
by tile of the vocabulary, what was summed shrinking whenever a larger logit appears. Entropy, mean logit and top-1 come
with it, and nothing larger than a tile ever exists.

A head that is trained itself needs its own gradient: it is run as it is, by autograd, chunk by chunk, and again in the
backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qdpo.engine.device import kind_of
from qdpo.engine.layout import Pack
from qdpo.engine.sizes import CHUNK_ROWS, TILE
from qdpo.errors import TrainingError

WIDENED_ROWS = 1024
"""Rows of a half-precision head that are widened at once where the device has no product with fp32 results."""


@dataclass(frozen=True)
class Head:
    """The output projection.

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        softcap: tanh soft-capping of the logits, None for none.
        scale: factor of the logits.
        trained: the projection itself where it is trained or has an adapter, None where it is frozen.
    """

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float
    trained: nn.Module | None = None


@dataclass(frozen=True)
class TokenScores:
    """What is known of each of S scored tokens.

    Attributes:
        logps: (S,) at least fp32, log-probability in nats; carries the gradient.
        entropy: (S,) at least fp32, nats.
        mean_logit: (S,) at least fp32, mean over the vocabulary.
        top1: (S,) bool, whether the token is the most likely one.
        log_squares: (S,) at least fp32, log of the sum of the squared probabilities; None where not asked for.
    """

    logps: Tensor
    entropy: Tensor
    mean_logit: Tensor
    top1: Tensor
    log_squares: Tensor | None = None


@dataclass(frozen=True)
class PackScores:
    """Log-probabilities and token statistics of the 2n sequences of a pack, chosen first.

    Attributes:
        logps: (2n,) at least fp32, summed over completion tokens; carries the gradient.
        tokens: (2n,) completion tokens.
        logits: (2n,) sum over completion tokens of the mean logit.
        entropy: (2n,) sum over completion tokens, nats.
        top1: (2n,) completion tokens that are the most likely ones.
    """

    logps: Tensor
    tokens: Tensor
    logits: Tensor
    entropy: Tensor
    top1: Tensor


def head_of(model: nn.Module) -> Head:
    """The output projection of a causal language model and what is done to its logits.

    Raises:
        TrainingError: it is no linear layer.
    """
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    linear = _linear_in(output)
    if linear is None:
        raise TrainingError(
            f"the output head is a {type(output).__name__}; the packed engine needs a linear layer", "set engine: trl"
        )
    trained = linear is not output or any(parameter.requires_grad for parameter in output.parameters())
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    scale = next(
        (
            value
            for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
            if (value := getattr(config, name, None)) is not None
        ),
        None,
    )
    if scale is None and (divisor := getattr(config, "logits_scaling", None)) is not None:
        # Granite and MiniCPM3 divide by it, HyperCLOVA X multiplies
        scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    scale = 1.0 if scale is None else scale
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, linear.bias, softcap, float(scale), output if trained else None)


def _linear_in(output: Any) -> nn.Linear | None:
    """The linear layer that a head is, or that PEFT has wrapped in an adapter or a trained copy."""
    for candidate in (output, getattr(output, "base_layer", None), getattr(output, "original_module", None)):
        if isinstance(candidate, nn.Linear):
            return candidate
    return None


def logits_of(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(S, V) products in a type that may be wider than what is multiplied, never rounded to the narrower one.

    In bf16 a logit of 10 is rounded by up to 0.03, and a log-probability with it; the sums are in fp32 anyway.

    Args:
        hidden: (S, H).
        weight: (V, H), of the same type.
        dtype: of the result: the operands' or fp32.
    """
    if hidden.dtype == dtype:
        return hidden @ weight.t()
    if kind_of(hidden.device) == "cuda":
        return torch.mm(hidden, weight.t(), out_dtype=dtype)
    # only CUDA has such a product; elsewhere the vocabulary is widened part by part
    logits = hidden.new_empty(hidden.shape[0], weight.shape[0], dtype=dtype)
    wide = hidden.to(dtype)
    for begin in range(0, weight.shape[0], WIDENED_ROWS):
        part = slice(begin, begin + WIDENED_ROWS)
        logits[:, part] = wide @ weight[part].to(dtype).t()
    return logits


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, with_grad: bool, with_squares: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        count = hidden.shape[0]
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logps, entropy, mean_logit, log_squares = hidden.new_zeros(4, count, dtype=exact)
        top1 = torch.empty(count, dtype=torch.bool, device=hidden.device)
        gradient = torch.empty_like(hidden) if with_grad else None
        for begin in range(0, count, CHUNK_ROWS):
            part = slice(begin, begin + CHUNK_ROWS)
            sums = _Sums(hidden[part].to(head.weight.dtype), head, targets[part], exact, with_grad, with_squares)
            logps[part], entropy[part], mean_logit[part] = sums.logps, sums.entropy, sums.mean_logit
            log_squares[part], top1[part] = sums.log_squares, sums.best == targets[part]
            if gradient is not None:
                gradient[part] = sums.gradient()
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy, mean_logit, top1, log_squares)
        return logps, entropy, mean_logit, top1, log_squares

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None, None, None


class _Sums:
    """What the softmax of some rows sums up over the vocabulary, tile by tile.

    Args:
        hidden: (R, H) in the head's type.
        head: the output projection.
        targets: (R,) ids.
        exact: type of the sums.
        with_grad: sum up p W too.
        with_squares: sum up p^2 too; else `log_squares` is zero.
    """

    def __init__(
        self, hidden: Tensor, head: Head, targets: Tensor, exact: torch.dtype, with_grad: bool, with_squares: bool
    ) -> None:
        rows, vocabulary = len(hidden), len(head.weight)
        self.head, self.targets = head, targets
        # of exp(z), of exp(z) z, of z, of exp(2 z), all but that of z relative to the highest logit so far
        total, weighted, plain, squares, at_target = hidden.new_zeros(5, rows, dtype=exact)
        highest = hidden.new_full((rows,), -torch.inf, dtype=exact)
        self.best = torch.zeros_like(targets)
        self.weights = torch.zeros_like(hidden, dtype=exact) if with_grad else None
        self.slope = torch.ones_like(total)
        width = max(TILE.get(kind_of(hidden.device), TILE["cuda"]) // rows, 1)
        for first in range(0, vocabulary, width):
            weight = head.weight[first : first + width]
            z = logits_of(hidden, weight, exact)
            if head.bias is not None:
                z += head.bias[first : first + width]
            if head.scale != 1.0:
                z *= head.scale
            slope = None
            if head.softcap is not None:
                squashed = torch.tanh(z / head.softcap)
                z, slope = squashed * head.softcap, 1 - squashed.square()
            here = (targets - first).clamp(0, len(weight) - 1)[:, None]
            inside = (targets >= first) & (targets < first + len(weight))
            at_target = torch.where(inside, z.gather(1, here)[:, 0], at_target)
            top, place = z.max(-1)
            self.best = torch.where(top > highest, place + first, self.best)
            before, highest = highest, torch.maximum(highest, top)
            shrink = torch.exp(before - highest)
            e = (z - highest[:, None]).exp_()
            plain += z.sum(-1)
            total = total * shrink + e.sum(-1)
            weighted = weighted * shrink + z.mul_(e).sum(-1)
            if with_squares:
                squares = squares * shrink.square() + e.square().sum(-1)
            if self.weights is None:
                continue
            if slope is not None:
                e *= slope
                self.slope = torch.where(inside, slope.gather(1, here)[:, 0], self.slope)
            self.weights *= shrink[:, None]
            if weight.dtype == exact:
                self.weights.addmm_(e, weight)
            else:
                self.weights += e.to(weight.dtype) @ weight
        normaliser = highest + total.log()
        self.total = total
        self.logps, self.mean_logit = at_target - normaliser, plain / vocabulary
        self.entropy = normaliser - weighted / total
        self.log_squares = squares.log() - 2 * total.log() if with_squares else squares

    def gradient(self) -> Tensor:
        """(R, H) of the log-probabilities by the hidden states: W[y] - p W, through soft-cap and scale."""
        assert self.weights is not None
        at_target = self.head.weight[self.targets] * self.slope[:, None]
        return (at_target - self.weights / self.total[:, None]) * self.head.scale


def score_tokens(hidden: Tensor, head: Head, targets: Tensor, *, squares: bool = False) -> TokenScores:
    """Score S tokens.

    Args:
        hidden: (S, H) the states that predict them.
        head: the output projection.
        targets: (S,) their ids.
        squares: compute `log_squares` too.
    """
    if head.trained is not None:
        parts = [
            checkpoint(
                _score_chunk,
                hidden[begin : begin + CHUNK_ROWS],
                head,
                targets[begin : begin + CHUNK_ROWS],
                squares,
                use_reentrant=False,
            )
            for begin in range(0, max(hidden.shape[0], 1), CHUNK_ROWS)
        ]
        logps, entropy, mean_logit, top1, log_squares = (torch.cat(column) for column in zip(*parts, strict=True))
        return TokenScores(logps, entropy, mean_logit, top1, log_squares if squares else None)
    with_grad = torch.is_grad_enabled() and hidden.requires_grad
    # The function chooses its own precision: autocast would turn the fp32 sums into half precision.
    with torch.autocast(hidden.device.type, enabled=False):
        logps, entropy, mean_logit, top1, log_squares = _Score.apply(hidden, head, targets, with_grad, squares)
    return TokenScores(logps, entropy, mean_logit, top1, log_squares if squares else None)


def _score_chunk(
    hidden: Tensor, head: Head, targets: Tensor, squares: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `TokenScores` for a chunk, through a head that is trained; autograd sees all of it."""
    assert head.trained is not None
    logits = head.trained(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = logits.to(torch.promote_types(hidden.dtype, torch.float32)) * head.scale
        if head.softcap is not None:
            logits = torch.tanh(logits / head.softcap) * head.softcap
        every = torch.log_softmax(logits, -1)
        logps = every.gather(1, targets[:, None])[:, 0]
        with torch.no_grad():
            p = every.exp()
            entropy = -(p * every).sum(-1)
            log_squares = p.square().sum(-1).log() if squares else torch.empty_like(entropy)
            return logps, entropy, logits.mean(-1), logits.argmax(-1) == targets, log_squares


def hidden_of(model: nn.Module, pack: Pack, mask: Tensor | dict[str, Tensor] | None = None) -> Tensor:
    """(N, H) last hidden states of a pack.

    Args:
        model: the *ForCausalLM itself (with adapters injected or not), its attention installed unless a mask is given.
        pack: on the model's device.
        mask: what `qdpo.engine.masks` makes, for a model with its own attention.
    """
    backbone: Any = model.base_model
    settings: dict[str, Any] = {"attention_mask": mask}
    if mask is None:
        # A 4-D mask is taken as it is; without it transformers would build an N x N one from the position ids.
        dummy = torch.zeros(1, 1, 1, 1, device=pack.input_ids.device)
        settings = {"attention_mask": dummy, "qdpo_pack": pack}
    output = backbone(input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False, **settings)
    return output.last_hidden_state[0]


def sum_per_sequence(scores: TokenScores, scored: Tensor | None, sequence: Tensor, count: int) -> PackScores:
    """Sums of token scores over sequences.

    Args:
        scores: of S tokens.
        scored: (K,) index into S of each sequence's tokens; None for all S in order.
        sequence: (K,) number of the sequence.
        count: sequences.
    """

    def summed(values: Tensor) -> Tensor:
        # One after the other, hundreds of terms lose digits that the small differences of DPO need; and on a GPU the
        # order is not always the same.
        values = values.to(torch.float64)
        zeros = torch.zeros(count, dtype=torch.float64, device=values.device)
        return zeros.index_add(0, sequence, values if scored is None else values.index_select(0, scored)).to(
            scores.logps.dtype
        )

    # not bincount: on a GPU the host would wait for it
    tokens = torch.zeros(count, dtype=scores.logps.dtype, device=sequence.device)
    tokens.index_add_(0, sequence, tokens.new_ones(len(sequence)))
    return PackScores(
        summed(scores.logps), tokens, summed(scores.mean_logit), summed(scores.entropy), summed(scores.top1)
    )
