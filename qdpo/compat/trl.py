"""The packed engine inside a TRL user's own DPOTrainer, in one line.

    trainer = DPOTrainer(...)
    qdpo.accelerate(trainer)
    trainer.train()

TRL asks its model for per-token log-probabilities (`fused_lm_head=True`) of a padded batch. Only the answer to that
question is exchanged: the batch is laid out as shared prompts without padding, run once, and the numbers are put back
where TRL expects them. Losses, metrics, reference, optimizer and loop stay TRL's.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qdpo import console
from qdpo.config.schema import PackingSection
from qdpo.data.pairs import TokenPair
from qdpo.engine.attach import attach, detach
from qdpo.engine.engine import Engine
from qdpo.engine.fuse import Fusion
from qdpo.engine.layout import Pack, build_pack
from qdpo.engine.layouts import Packed
from qdpo.engine.logps import head_of, hidden_of, score_tokens
from qdpo.engine.probe import Decision
from qdpo.errors import UnavailableError

TESTED = ("1.15", "1.17")
"""TRL versions that the tests have run against: from the first, below the second. 1.14 asks for log-probabilities in
another way."""

# What a packed row cannot carry: images, and positions that TRL would have to shift with it.
KNOWN_INPUTS = {"input_ids", "attention_mask", "labels", "use_cache"}


@dataclass
class Acceleration:
    """What was done to a trainer.

    Attributes:
        decision: the layout and its reason.
        fusion: the fused functions.
        packed: batches that went through the packed engine.
        passed_on: batches that TRL computed itself, because they cannot be packed.
    """

    decision: Decision
    fusion: Fusion
    packed: int = 0
    passed_on: int = 0
    _undo: list[Callable[[], object]] = field(default_factory=list)

    def undo(self) -> None:
        """Give the trainer back as it was."""
        while self._undo:
            self._undo.pop()()


def accelerate(trainer: Any, *, fused: bool = True) -> Acceleration:
    """Let a `trl.DPOTrainer` compute its log-probabilities with shared prompts and without padding.

    Args:
        trainer: TRL's, made and not yet training; its adapter must leave the output head alone.
        fused: run adapted linear layers, gated MLPs and norms as single functions too.

    Returns:
        What was done, with `undo`.

    Raises:
        UnavailableError: another version of TRL than those tested, another trainer, or a set-up that a packed row
            cannot represent. Nothing is changed then.
    """
    _refuse(trainer)
    policy = trainer.model
    models = [_base(policy)] + ([trainer.ref_model] if trainer.ref_model is not None else [])
    for part in models:
        head_of(part)
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    engines: list[Engine] = []
    decisions: list[Decision] = []
    why = None
    for part in models:
        packing = PackingSection() if fused and part is models[0] else None
        try:
            engine, decision = attach(part, next(part.parameters()).device, trainer.accelerator.autocast, packing)
        except UnavailableError as error:
            why = error.message
            break
        engines.append(engine)
        decisions.append(decision)
        if not isinstance(engine.layout, Packed) or engine.layout != engines[0].layout:
            why = decision.reason
            break
    undo: list[Callable[[], object]] = [partial(torch.backends.cuda.enable_cudnn_sdp, cudnn)]
    undo += [partial(detach, engine) for engine in engines]
    if why is not None:
        for step in reversed(undo):
            step()
        raise UnavailableError(
            f"this model's prompts cannot be shared: {why}", "train with TRL as it is: it is not changed"
        )
    done = Acceleration(decisions[0], engines[0].fusion, _undo=undo)
    for engine in engines:
        part = engine.model
        before = part.__dict__["forward"]
        part.forward = types.MethodType(_packed_forward(before, done, engine, bool(trainer.use_weighting)), part)
        done._undo.append(partial(setattr, part, "forward", before))
    console.good(f"trl: {engines[0].layout.words} ({decisions[0].reason}); {done.fusion.describe()}")
    return done


def _refuse(trainer: Any) -> None:
    """Raise when a trainer is not what the tests have seen."""
    import trl
    from packaging.version import Version

    if not Version(TESTED[0]) <= Version(trl.__version__) < Version(TESTED[1]):
        raise UnavailableError(
            f"qdpo.accelerate is tested with TRL from {TESTED[0]} to below {TESTED[1]}; this is {trl.__version__}",
            f"install trl>={TESTED[0]},<{TESTED[1]}, or train with `qdpo train`",
        )
    if not isinstance(trainer, trl.DPOTrainer):
        raise UnavailableError(f"qdpo.accelerate takes a trl.DPOTrainer, not a {type(trainer).__name__}")
    reasons = {
        "a vision-language model": getattr(trainer, "_is_vlm", False),
        "a mixture-of-experts auxiliary loss (it would count prompts once)": getattr(
            trainer, "aux_loss_enabled", False
        ),
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "FSDP": trainer.is_fsdp_enabled,
        "prompt-learning adapters": any(
            config.is_prompt_learning for config in getattr(trainer.model, "peft_config", {}).values()
        ),
        "a model whose forward TRL has not prepared": "forward" not in _base(trainer.model).__dict__,
    }
    found = [name for name, present in reasons.items() if present]
    if found:
        raise UnavailableError(f"qdpo.accelerate does not support {', '.join(found)}", "train with TRL as it is")


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(frozen=True)
class _Batch:
    """A padded batch as a packed row, and where each scored token belongs in TRL's (2n, L-1) grid."""

    ids: Tensor
    pack: Pack
    places: Tensor


def _packed_forward(
    original: Callable[..., Any], done: Acceleration, engine: Engine, squares: bool
) -> Callable[..., Any]:
    """A forward that answers TRL's question from a packed row, and passes every other call on."""
    last: list[_Batch] = []

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **kwargs)
        ids = kwargs.get("input_ids")
        odd = {name for name, value in kwargs.items() if value is not None and name not in KNOWN_INPUTS}
        if args or odd or ids is None or kwargs.get("labels") is None:
            done.passed_on += 1
            return original(*args, fused_lm_head=True, **kwargs)
        # the reference and the policy are asked about the same tensor, one after the other
        if not last or last[0].ids is not ids:
            batch = _laid_out(ids, kwargs["attention_mask"], kwargs["labels"])
            last[:] = [batch] if batch is not None else []
            if batch is None:
                done.passed_on += 1
                return original(fused_lm_head=True, **kwargs)
        done.packed += 1
        return _answer(engine, last[0], kwargs["labels"], squares)

    return forward


def _laid_out(ids: Tensor, mask: Tensor, labels: Tensor) -> _Batch | None:
    """The pairs of TRL's batch as one packed row; None when they are not [prompt | completion | padding]."""
    count, width = ids.shape
    n = count // 2
    if count % 2:
        return None
    rows, lengths = ids.tolist(), mask.sum(1).tolist()
    scored = labels != -100
    firsts, totals = scored.int().argmax(1).tolist(), scored.sum(1).tolist()
    right_padded = bool((mask == (torch.arange(width, device=mask.device) < mask.sum(1, keepdim=True))).all())
    contiguous = all(
        total > 0 and first > 0 and first + total == length
        for first, total, length in zip(firsts, totals, lengths, strict=True)
    )
    if not (right_padded and contiguous):
        return None
    pairs = []
    for i in range(n):
        first, other = rows[i], rows[n + i]
        start = firsts[i]
        # left truncation may cut the two prompts differently
        if firsts[n + i] != start or first[:start] != other[:start]:
            return None
        pairs.append(TokenPair(i, first[:start], first[start : lengths[i]], other[start : lengths[n + i]]))
    pack = build_pack(pairs, range(n)).to(ids.device)
    seen = [0] * count
    places = []
    for sequence in pack.sequence.tolist():
        places.append(sequence * (width - 1) + firsts[sequence] - 1 + seen[sequence])
        seen[sequence] += 1
    return _Batch(ids, pack, torch.tensor(places, device=ids.device))


def _answer(engine: Engine, batch: _Batch, labels: Tensor, squares: bool) -> Any:
    """TRL's FusedCausalLMOutput for a batch."""
    from trl.trainer.utils import FusedCausalLMOutput

    model, pack = engine.model, batch.pack
    assert isinstance(engine.layout, Packed)
    hidden = hidden_of(model, pack, engine.layout.mask(model, pack)).index_select(0, pack.rows)
    scores = score_tokens(hidden, head_of(model), pack.targets, squares=squares)
    wanted = labels[:, 1:] != -100

    def grid(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        empty = values.new_zeros(wanted.numel())
        return empty.index_copy(0, batch.places, values.index_select(0, pack.scored)).view(wanted.shape)

    logps = grid(scores.logps)
    assert logps is not None
    return FusedCausalLMOutput(
        loss=-logps.sum() / wanted.sum().clamp(min=1),
        log_probs=logps,
        entropy=grid(scores.entropy),
        log_sum_sq_probs=grid(scores.log_squares),
        mean_logits=grid(scores.mean_logit),
        is_top1=grid(scores.top1),
        label_mask=wanted,
        aux_loss=None,
    )
