"""`--calibrate`: one forward, backward and step on the longest batch, and the measured peak beside the estimate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.hardware import GIB, Device, find_device, mixed_precision
from qdpo.planner.auto import choose
from qdpo.planner.cards import card_of
from qdpo.planner.data import lengths_from
from qdpo.planner.estimate import estimate_for
from qdpo.planner.find import loaded
from qdpo.planner.meter import peak_bytes
from qdpo.planner.optimizer import choose_optimizer
from qdpo.planner.plays import plays_for
from qdpo.planner.settings import with_changes

if TYPE_CHECKING:
    import torch

    from qdpo.data.pairs import TokenPair
    from qdpo.engine.logps import PackScores


@dataclass(frozen=True)
class Calibration:
    """Bytes of tensors.

    Attributes:
        loaded: of base and adapter, measured.
        loaded_estimate: the same, estimated.
        peak: while stepping, measured.
        peak_estimate: the same, estimated.
        pairs: of the batch.
        tokens: packed tokens of the batch.
        device: where it was measured.
    """

    loaded: int
    loaded_estimate: float
    peak: int
    peak_estimate: float
    pairs: int
    tokens: int
    device: str

    @property
    def error(self) -> float:
        """Of the estimate, relative to the measured peak."""
        return self.peak_estimate / self.peak - 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "error": self.error}

    def text(self) -> str:
        """In words."""
        rows = [
            f"one step on the {self.pairs} longest pairs ({self.tokens:,} packed tokens) on {self.device}",
            f"{'':24}{'measured':>14}{'estimated':>14}",
            f"{'base and adapter':24}{self.loaded / GIB:10.3f} GiB{self.loaded_estimate / GIB:10.3f} GiB",
            f"{'peak of the step':24}{self.peak / GIB:10.3f} GiB{self.peak_estimate / GIB:10.3f} GiB"
            f"  ({self.error:+.1%})",
        ]
        return "\n".join(rows)


def calibrate(config: RunConfig, *, auto: bool = False) -> Calibration:
    """Load base, adapter and data as a run would, make one step on the longest pairs, and measure.

    Args:
        config: the run's configuration.
        auto: choose the settings for this machine first.
    """
    from qdpo.data.prepare import prepare
    from qdpo.engine.layout import packed_tokens
    from qdpo.libraries import quiet_libraries
    from qdpo.model.load import load_base, load_tokenizer
    from qdpo.model.lora import attach, disable_dropout
    from qdpo.paths import cache_folder

    quiet_libraries()
    device = find_device()
    data = prepare(
        config.data.model_copy(update={"contamination": []}),
        load_tokenizer(config.model),
        config.train.seed,
        cache=cache_folder("data"),
    )
    longest = sorted(range(len(data.train)), key=lambda i: -packed_tokens(data.train[i]))
    pairs = [data.train[i] for i in longest[: config.train.pairs_per_step]]
    base = load_base(config.model, device)
    known = loaded(config.model.name, base.model)
    card = card_of(device)
    config = with_changes(config, "model", dtype=str(base.dtype).removeprefix("torch."))
    if auto:
        config, choices = choose(config, known, card, lengths_from(config, data.train, data.heldout))
        for choice in choices:
            console.note(f"{choice.setting}: {choice.reason}")
    policy = attach(base.model, config.lora, config.train.seed, config.model.adapter)
    disable_dropout(policy)
    lengths = lengths_from(config, pairs, pairs)
    found = estimate_for(config, known, card, lengths)
    step = make_step(policy, base.dtype, device, config, pairs)
    step()  # the optimizer's state and the libraries' workspaces exist from the second step on
    frozen = tensor_bytes(policy)
    state = _optimizer_state(step)
    peak = frozen + state + peak_bytes(step, device.torch)
    estimated = sum(size for name, size in plays_for(known, config, card).model.static.items())
    stepping = max(found.phases[name] for name in ("forward", "backward", "step"))
    tokens = sum(packed_tokens(pair) for pair in pairs)
    return Calibration(frozen, estimated, peak, stepping, len(pairs), tokens, device.name)


@dataclass
class Step:
    """One optimizer step as a run makes it: packs, forward, backward, clipping, update.

    Attributes:
        engine: runs the model.
        policy: with its adapter.
        optimizer: of the kind that the configuration names.
        config: the run's configuration.
        pairs: of the batch.
        scaler: scales the loss in float16; None elsewhere.
    """

    engine: Any
    policy: Any
    optimizer: Any
    config: RunConfig
    pairs: list[TokenPair]
    scaler: Any

    def __call__(self) -> None:
        """Make the step."""
        import torch

        from qdpo.engine.optimizer import gradient_norm, update

        self.policy.train()

        def loss_of(group: list[int], scores: PackScores) -> torch.Tensor:
            chosen, rejected = scores.logps.chunk(2)
            margins = self.config.loss.beta * (chosen - rejected)
            return -torch.nn.functional.logsigmoid(margins).sum() / len(self.pairs)

        def backward(loss: torch.Tensor) -> None:
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

        groups = self.engine.cut(self.pairs, self.config.packing.tokens_per_micro_batch)
        self.engine.step(self.pairs, groups, loss_of, backward)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        update(self.optimizer, self.scaler, trained, gradient_norm(trained), self.config.train.max_grad_norm)


def make_step(policy: Any, dtype: torch.dtype, device: Device, config: RunConfig, pairs: list[TokenPair]) -> Step:
    """A step on a loaded model, its attention, fused functions and checkpointing set up as in a run."""
    import torch

    from qdpo.engine.attach import attach
    from qdpo.engine.optimizer import make_optimizer

    precision = mixed_precision(device, dtype)
    engine, _ = attach(
        policy, device.torch, precision, config.packing, checkpointing=config.train.gradient_checkpointing
    )
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    scaler = torch.amp.GradScaler("cuda") if device.kind == "cuda" and dtype == torch.float16 else None
    weights = sum(parameter.numel() for parameter in trained)
    chosen = choose_optimizer(config.train.optim, weights, math.inf, device.kind)
    return Step(engine, policy, make_optimizer(config.train, chosen.name, trained), config, pairs, scaler)


def tensor_bytes(module: Any) -> int:
    """Bytes of a model's parameters, buffers, and the scales of its 4-bit weights; shared memory counts once."""
    seen: dict[int, int] = {}

    def add(tensor: Any) -> None:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()

    for tensor in [*module.parameters(), *module.buffers()]:
        add(tensor)
        state = getattr(tensor, "quant_state", None)
        while state is not None:
            for name in ("absmax", "code", "offset"):
                value = getattr(state, name, None)
                if hasattr(value, "untyped_storage"):
                    add(value)
            state = getattr(state, "state2", None)
    return sum(seen.values())


def _optimizer_state(step: Step) -> int:
    """Bytes of the optimizer's state in tensors that the allocator counts: paged ones it does not."""
    values = [value for state in step.optimizer.state.values() for value in state.values()]
    return sum(v.nbytes for v in values if hasattr(v, "untyped_storage") and not getattr(v, "is_paged", False))
