"""What must hold before the first step and after it; each check is printed, and a broken one stops the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qdpo import console
from qdpo.config.loss import LossSettings
from qdpo.config.schema import LoraSection
from qdpo.data.pairs import TokenPair
from qdpo.data.template import Template
from qdpo.engine.engine import Engine
from qdpo.engine.layout import Pack, build_pack
from qdpo.engine.losses import PairLogps, pair_losses
from qdpo.errors import TrainingError
from qdpo.model.lora import lora_layers, trainable
from qdpo.model.targets import check_left_out, linear_layers, stripped
from qdpo.model.tensors import is_finite
from qdpo.progress import Progress

if TYPE_CHECKING:
    from peft import PeftModel

SAMPLE = 8
"""Pairs that the checks run through the model."""

TOLERANCE = 1e-3
"""Largest difference in nats between policy and reference before the first step."""


@dataclass(frozen=True)
class Check:
    """A check that passed.

    Attributes:
        name: what holds.
        detail: the figures.
    """

    name: str
    detail: str

    def say(self) -> Check:
        """Print it as one line."""
        console.good(f"{self.name}: {self.detail}")
        return self


def check_targets(policy: nn.Module, config: LoraSection) -> Check:
    """Every target module has a trainable fp32 adapter."""
    layers = lora_layers(policy)
    for name, layer in layers.items():
        for side in ("lora_A", "lora_B"):
            weight = getattr(layer, side)["default"].weight
            if not weight.requires_grad or weight.dtype != torch.float32:
                raise TrainingError(f"the adapter of {name} is not trained in fp32 ({side}: {weight.dtype})")
    present = {stripped(name).rsplit(".", 1)[-1] for name in layers}
    wanted = sorted(present) if isinstance(config.target_modules, str) else config.target_modules
    missing = [target for target in wanted if target not in present]
    if missing:
        raise TrainingError(f"no adapter was attached to {', '.join(missing)}", "check lora.target_modules")
    bare = [name for name, _ in linear_layers(policy) if name.rsplit(".", 1)[-1] in wanted and name not in layers]
    if bare:
        raise TrainingError(f"no adapter was attached to {len(bare)} layers (first: {bare[0]})")
    count = sum(parameter.numel() for parameter in trainable(policy).values())
    left = check_left_out(policy, config.leave_out)
    without = f"; without: {', '.join(sorted(left))}, {sum(left.values()):,} weights" if left else ""
    return Check(
        "every target has a trainable adapter",
        f"{len(layers)} layers ({', '.join(sorted(present))}), {count:,} parameters in fp32{without}",
    )


def check_policy_is_reference(
    engine: Engine, policy: PeftModel, pairs: Sequence[TokenPair], loss: LossSettings, *, budget: int, fresh: bool
) -> Check:
    """Before training, the policy with its adapter and the reference give the same log-probabilities.

    Args:
        engine: runs the policy's model.
        policy: with its adapter.
        pairs: a few training pairs.
        loss: for the value of the loss, which is ln 2 for `sigmoid`.
        budget: tokens of a pass.
        fresh: the adapter is new; one that training continues from differs from the base, and only finiteness is
            checked.
    """
    with Progress("comparing policy and reference", 2 * engine.tokens(pairs, budget), unit="tokens") as progress:
        scores = engine.score_all(pairs, budget, progress.advance)
        with policy.disable_adapter():
            base = engine.score_all(pairs, budget, progress.advance)
    if not (torch.isfinite(scores.logps).all() and torch.isfinite(base.logps).all()):
        rows = [pair.row for pair in pairs]
        raise TrainingError(
            f"log-probabilities of rows {rows} are not finite before training",
            "the base is damaged or overflows in this dtype; try model.dtype=bfloat16 or float32",
        )
    gap = float((scores.logps - base.logps).abs().max())
    if not fresh:
        return Check(
            "log-probabilities are finite", f"{len(pairs)} pairs; the starting adapter moves them by {gap:.3g}"
        )
    chosen, rejected = scores.logps.chunk(2)
    ref_chosen, ref_rejected = base.logps.chunk(2)
    chosen_tokens, rejected_tokens = scores.tokens.chunk(2)
    mean_chosen = float(chosen_tokens.mean())
    batch = PairLogps(chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens, mean_chosen)
    value = float(pair_losses(batch, loss).mean())
    margin = float(((chosen - ref_chosen) - (rejected - ref_rejected)).abs().max())
    if gap > TOLERANCE or (loss.loss_type == ["sigmoid"] and abs(value - math.log(2)) > TOLERANCE):
        raise TrainingError(
            f"policy and reference differ before the first step: by up to {gap:.3g} nats, loss {value:.6f}",
            "the adapter does not start at zero, or disabling it does not give the base back",
        )
    expected = " (ln 2)" if loss.loss_type == ["sigmoid"] else ""
    return Check(
        "policy equals reference", f"loss {value:.6f}{expected}, largest margin {margin:.1g}, {len(pairs)} pairs"
    )


def check_sequences(pairs: Sequence[TokenPair], template: Template, bos: int | None, max_length: int) -> Check:
    """At most one BOS (none in an answer, where turns begin with it), and exactly one end of turn, learned, in every
    completion that was not cut."""
    cut, opens = 0, template.bos_opens_turns
    for pair in pairs:
        for name, completion in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            # where every turn begins with it, a prompt has several, but the first two tokens are not both one
            looked_at = pair.prompt[:2] + completion if opens else pair.prompt + completion
            count = looked_at.count(bos) if bos is not None else 0
            if count > 1:
                raise TrainingError(
                    f"row {pair.row} has {count} BOS tokens in prompt and {name}",
                    "the text or the template brings its own BOS; remove it",
                )
            ends = sum(token in template.end_of_turn for token in completion)
            if len(pair.prompt) + len(completion) >= max_length and ends == 0:
                cut += 1
            elif template.end_of_turn and ends != 1:
                raise TrainingError(
                    f"row {pair.row} has {ends} end-of-turn tokens in {name}, expected 1",
                    "an answer that contains the token itself, or a template that writes none; "
                    "look at the row, or choose another data.template",
                )
    tokens = ", ".join(map(str, sorted(template.end_of_turn))) or "none in this template"
    detail = f"{2 * len(pairs):,} sequences, end of turn {tokens}" + (f", {cut:,} cut before it" if cut else "")
    return Check("one BOS and one end of turn", detail)


def check_prefix(pairs: Sequence[TokenPair]) -> Check:
    """The packed row, read back, gives prompt + completion of both sides with every completion token scored."""
    pack = build_pack(pairs, range(len(pairs)))
    for number, (pair, sides) in enumerate(zip(pairs, unpack(pack), strict=True)):
        for name, (sequence, scored) in zip(("chosen", "rejected"), sides, strict=True):
            completion: list[int] = getattr(pair, name)
            if sequence != (pair.prompt + completion)[:-1] or scored != completion:
                raise TrainingError(
                    f"the packed row of pair {number} (row {pair.row}) does not read back as its {name}"
                )
    return Check("the prompt is a prefix of both sequences", f"{len(pairs)} pairs read back from a packed row")


def unpack(pack: Pack) -> list[list[tuple[list[int], list[int]]]]:
    """Each pair's (input ids, scored ids) of chosen and rejected, as attention and scoring see them."""
    ids = pack.input_ids[0].tolist()
    owner = {s.start + i: s for s in pack.segments for i in range(s.length)}
    result: list[list[tuple[list[int], list[int]]]] = []
    for number in range(pack.n_pairs):
        sides = []
        for side in (number, pack.n_pairs + number):
            places = pack.scored[pack.sequence == side].tolist()
            last = owner[int(pack.rows[places[-1]])]
            prefix = ids[last.prefix_start : last.prefix_start + last.prefix_length]
            end = int(pack.rows[places[-1]]) + 1
            sides.append((prefix + ids[last.start : end], [int(pack.targets[place]) for place in places]))
        result.append(sides)
    return result


def check_finite(policy: nn.Module) -> Check:
    """Every weight is finite, the scales of the 4-bit ones included."""
    count = 0
    for name, parameter in policy.named_parameters():
        values: Any = parameter
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            values = state.absmax if not state.nested else state.state2.absmax
        if not is_finite(values):
            raise TrainingError(f"the weight {name} is not finite", "the base or the adapter is damaged")
        count += 1
    return Check("all weights are finite", f"{count} tensors")


def check_adapter_learned(policy: nn.Module, step: int) -> Check:
    """After a step with a learning rate above 0, lora_B is non-zero on every target.

    Args:
        policy: with its adapter.
        step: optimizer steps done.
    """
    layers = lora_layers(policy)
    dead = [name for name, layer in layers.items() if not layer.lora_B["default"].weight.any()]
    if dead:
        raise TrainingError(
            f"after step {step}, lora_B is still zero on {len(dead)} of {len(layers)} layers (first: {dead[0]})",
            "no gradient reaches them: check gradient checkpointing and lora.target_modules",
        )
    return Check("every adapter learns", f"lora_B is non-zero on {len(layers)} layers after step {step}")
