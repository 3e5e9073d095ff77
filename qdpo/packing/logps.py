"""Log-probabilities of completion tokens, without ever forming all logits.

The head is frozen and each scored row's upstream gradient is one number g, so d(logp)/dh = W[y] - p W can be formed in
the forward pass, chunk by chunk, and only multiplied by g in the backward pass: two matrix products instead of three,
and nothing of vocabulary size survives a chunk. Entropy, mean logit and top-1 come with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdpo.errors import TrainingError
from qdpo.packing.layout import Pack

CHUNK_ROWS = 256
"""Rows scored at once: 256 x 32,000 fp32 logits are 33 MB."""


@dataclass(frozen=True)
class Head:
    """The frozen output projection.

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        softcap: tanh soft-capping of the logits, None for none.
        scale: factor of the logits.
    """

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float


@dataclass(frozen=True)
class TokenScores:
    """What is known of each of S scored tokens.

    Attributes:
        logps: (S,) at least fp32, log-probability in nats; carries the gradient.
        entropy: (S,) at least fp32, nats.
        mean_logit: (S,) at least fp32, mean over the vocabulary.
        top1: (S,) bool, whether the token is the most likely one.
    """

    logps: Tensor
    entropy: Tensor
    mean_logit: Tensor
    top1: Tensor


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
        TrainingError: the head is trained or has an adapter.
    """
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    weight = getattr(output, "weight", None)
    if not isinstance(output, nn.Linear) or weight is None or weight.requires_grad:
        raise TrainingError(
            f"the output head is {type(output).__name__} and trained or adapted; the packed engine needs it frozen",
            "take lm_head out of lora.target_modules, or set engine: trl",
        )
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    scale = getattr(config, "logit_scale", None) or 1.0
    if divisor := getattr(config, "logits_scaling", None):
        scale = scale / divisor
    return Head(weight, output.bias, getattr(config, "final_logit_softcapping", None), float(scale))


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, with_grad: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = hidden.shape[0]
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logps, entropy, mean_logit = hidden.new_empty(3, count, dtype=exact)
        top1 = torch.empty(count, dtype=torch.bool, device=hidden.device)
        gradient = torch.empty_like(hidden) if with_grad else None
        weight = head.weight
        for begin in range(0, count, CHUNK_ROWS):
            part = slice(begin, min(begin + CHUNK_ROWS, count))
            h, y = hidden[part].to(weight.dtype), targets[part, None]
            logits = (h @ weight.t()).to(exact)
            if head.bias is not None:
                logits += head.bias
            if head.scale != 1.0:
                logits *= head.scale
            slope = None
            if head.softcap is not None:
                squashed = torch.tanh(logits / head.softcap)
                logits, slope = squashed * head.softcap, 1 - squashed.square()
            normaliser = torch.logsumexp(logits, -1)
            logps[part] = logits.gather(1, y)[:, 0] - normaliser
            mean_logit[part] = logits.mean(-1)
            top1[part] = logits.argmax(-1) == y[:, 0]
            p = torch.exp(logits - normaliser[:, None])
            entropy[part] = normaliser - (p * logits).sum(-1)
            if gradient is None:
                continue
            # d logp / d logits = onehot(y) - p, through the soft-cap's slope, the scale and the head
            if slope is None:
                step = weight[y[:, 0]] - p.to(weight.dtype) @ weight
            else:
                d = p.mul_(slope).neg_().scatter_add_(1, y, slope.gather(1, y))
                step = d.to(weight.dtype) @ weight
            gradient[part] = step * head.scale
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy, mean_logit, top1)
        return logps, entropy, mean_logit, top1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None, None


def score_tokens(hidden: Tensor, head: Head, targets: Tensor) -> TokenScores:
    """Score S tokens.

    Args:
        hidden: (S, H) the states that predict them.
        head: the frozen output projection.
        targets: (S,) their ids.
    """
    with_grad = torch.is_grad_enabled() and hidden.requires_grad
    # The function chooses its own precision: autocast would turn the fp32 sums into half precision.
    with torch.autocast(hidden.device.type, enabled=False):
        return TokenScores(*_Score.apply(hidden, head, targets, with_grad))


def score_pack(model: nn.Module, pack: Pack) -> PackScores:
    """Run a pack through a causal language model and score its completions.

    Args:
        model: the *ForCausalLM itself (with adapters injected or not), its attention installed.
        pack: on the model's device.
    """
    backbone: Any = model.base_model
    # A 4-D mask is taken as it is; without it transformers would build an N x N one from the position ids.
    dummy = torch.zeros(1, 1, 1, 1, device=pack.input_ids.device)
    output = backbone(
        input_ids=pack.input_ids,
        position_ids=pack.position_ids,
        attention_mask=dummy,
        use_cache=False,
        qdpo_pack=pack,
    )
    scores = score_tokens(output.last_hidden_state[0][pack.rows], head_of(model), pack.targets)

    def per_sequence(values: Tensor) -> Tensor:
        zeros = torch.zeros(2 * pack.n_pairs, dtype=scores.logps.dtype, device=values.device)
        return zeros.index_add(0, pack.sequence, values.to(zeros.dtype)[pack.scored])

    return PackScores(
        per_sequence(scores.logps),
        per_sequence(torch.ones_like(scores.logps)),
        per_sequence(scores.mean_logit),
        per_sequence(scores.entropy),
        per_sequence(scores.top1),
    )
