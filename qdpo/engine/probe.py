"""The start-up probe: which layout is right for the loaded model, found out by running it.

Two short pairs go through the model in its training type, packed and as separate padded rows. Rounding makes even two
paddings of the same rows differ, and two implementations of attention on the same rows differ more: in bfloat16 by 4 %
over the 30 layers of a real model. A layout is right when it differs no more than they do.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qdpo.data.pairs import TokenPair
from qdpo.engine import attention, varlen
from qdpo.engine.engine import evaluating
from qdpo.engine.layout import build_pack
from qdpo.engine.layouts import Layout, Masked, Packed, Separate, hidden_of_padded
from qdpo.engine.logps import hidden_of
from qdpo.engine.recompute import counted
from qdpo.engine.refusal import refusal
from qdpo.engine.sizes import PROBED
from qdpo.errors import first_line

MARGIN = 4.0
"""How many times as much as two paddings a layout may differ."""

KERNEL_MARGIN = 2.0
"""How many times as much as two implementations of attention a layout may differ, which sums in another order too."""

FLOOR = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Relative differences (root mean square) that are rounding even when two paddings happen to agree exactly. Norms and
RoPE compute in fp32 in fp64 models too. A wrong mask gives 0.05 and more."""

VARLEN = "packed varlen"
"""What `Packed` is called in `Decision.errors` when its attention is one variable-length kernel."""

PASSES = 8
"""Passes of a probe whose first attempt is right."""

WINDOW = 12
"""A sliding window is shrunk to this during the probe, so that short pairs reach beyond it."""


@dataclass(frozen=True)
class Decision:
    """What the probe found.

    Attributes:
        layout: the one to use; None when nothing but stock TRL will do.
        reason: in one sentence, with figures.
        noise: relative difference (root mean square) between hidden states of separate rows under two paddings.
        kernels: the same under two implementations of attention; 0 where the model has no other.
        errors: the same difference between separate rows and each layout that was tried.
        kernel: how attention is computed: `varlen` in one kernel, `sdpa` by torch's for each segment or kind of them,
            `own` as the model does it.
        own: the attention implementation that the model came with.
    """

    layout: Layout | None
    reason: str
    noise: float = 0.0
    kernels: float = 0.0
    errors: dict[str, float | str] = field(default_factory=dict)
    kernel: str = "own"
    own: str = "sdpa"

    @property
    def way(self) -> str:
        """The layout's name, or `trl`."""
        return self.layout.name if self.layout is not None else "trl"

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "way": self.way,
            "reason": self.reason,
            "noise": self.noise,
            "kernels": self.kernels,
            "errors": self.errors,
            "kernel": self.kernel,
            "attention": self.own,
        }


def probe_pairs(vocabulary: int) -> list[TokenPair]:
    """Two pairs of random tokens: a long prompt with shorter answers and the other way round."""
    rng = random.Random(0)

    def words(length: int) -> list[int]:
        return [rng.randrange(min(4, vocabulary - 2), vocabulary) for _ in range(length)]

    pairs = [TokenPair(row, *map(words, lengths)) for row, lengths in enumerate(PROBED)]
    # nothing in common at the beginning, so that both answers are segments of their own
    return [TokenPair(p.row, p.prompt, p.chosen, [(p.chosen[0] + 1) % vocabulary, *p.rejected[1:]]) for p in pairs]


def decide(
    model: nn.Module,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    kernel: str | None = None,
) -> Decision:
    """Find the fastest layout that is right for a model, and set the model's attention up for it.

    Args:
        model: the *ForCausalLM, adapters injected or not, with its own attention.
        device: where it is.
        autocast: the context of a forward pass in training.
        kernel: what an earlier decision for the same run said, which timing is not to overturn; None measures.
    """
    config: Any = model.config
    own = attention.install(model, getattr(config, "_attn_implementation", None) or "eager") or "eager"
    pairs = probe_pairs(config.get_text_config().vocab_size)
    errors: dict[str, float | str] = {}
    counting = counted(model, "trying how pairs can be laid out", PASSES)
    with torch.no_grad(), evaluating(model), _short_window(model), autocast(), counting:
        try:
            separate = _rows_of_padded(model, pairs, device, 0)
            noise = _difference(_rows_of_padded(model, pairs, device, 7), separate)
            alone = torch.cat([_rows_of_padded(model, [pair], device, 3) for pair in pairs])
            noise = max(noise, _difference(alone, _by_pair(separate, pairs)))
        except Exception as error:  # whatever a foreign architecture raises, the answer is the same
            return Decision(None, f"separate padded rows do not run: {first_line(error, 200)}", own=own)
        kernels = _between_kernels(model, pairs, device, separate, own)
        limit = max(MARGIN * noise, KERNEL_MARGIN * kernels, FLOOR.get(separate.dtype, 1e-3))
        why = refusal(config, bool(getattr(model, "_is_stateful", False)))
        if why is None and (seen := _visible(model, pairs, device)) <= 2 * limit:
            why = f"a wrong layout would change the result by {seen:.1e} only, too little to be told from rounding"
        if why is None:
            tries: list[tuple[Packed, str]] = [
                *((Packed(), kind) for kind in _kernels(model, device, kernel, errors)),
                (Masked(), "own"),
                (Masked(by_layer_type=True), "own"),
            ]
            for layout, kind in tries:
                tried_as = VARLEN if kind == "varlen" else layout.name
                try:
                    attention.install(model, {"varlen": varlen.NAME, "sdpa": attention.NAME, "own": own}[kind])
                    gap = _difference(_rows_of_packed(model, pairs, device, layout), separate)
                    if kind != "own":
                        # evaluation by other code uses ordinary passes of the installed attention
                        gap = max(gap, _difference(_rows_of_padded(model, pairs, device, 0), separate))
                except Exception as problem:
                    errors[tried_as] = f"{type(problem).__name__}: {first_line(problem, 200)}"
                    continue
                errors[tried_as] = gap
                if gap <= limit:
                    how = layout.words + (", attention in one variable-length kernel" if kind == "varlen" else "")
                    reason = f"{how}: differs from separate rows by {gap:.1e}, two paddings by {noise:.1e}"
                    reason += f", two kernels by {kernels:.1e}" if kernels else ""
                    if isinstance(without := errors.get(VARLEN), str):
                        reason += f" (without the variable-length kernel: {without})"
                    return Decision(layout, reason, noise, kernels, errors, kind, own)
        attention.install(model, own)
        if why is None:
            tried = ", ".join(f"{way} {e:.1e}" if isinstance(e, float) else f"{way} fails" for way, e in errors.items())
            why = f"packed rows differ from separate ones ({tried}; two paddings {noise:.1e})"
        if noise > FLOOR.get(separate.dtype, 1e-3) * 25:
            return Decision(
                None, f"{why}, and padding changes the result by {noise:.1e}", noise, kernels, errors, own=own
            )
        return Decision(Separate(), f"{Separate().words}: {why}", noise, kernels, errors, own=own)


def _kernels(model: nn.Module, device: torch.device, known: str | None, errors: dict[str, float | str]) -> list[str]:
    """The kernels worth trying for `Packed`, the fastest first; what speaks against one goes into `errors`."""
    varlen.register()
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    try:
        wanted = known == "varlen" or (known is None and varlen.is_faster(model, device, dtype))
    except Exception as problem:  # whatever this card, driver and torch say of the kernel, there is the other way
        errors[VARLEN] = f"not timed: {type(problem).__name__}: {first_line(problem, 200)}"
        wanted = False
    return ["varlen"] * wanted + ["sdpa"]


def _rows_of_padded(model: nn.Module, pairs: list[TokenPair], device: torch.device, padding: int) -> Tensor:
    """(rows, H) hidden states of every token of every sequence, chosen ones first."""
    sequences = [p.prompt + p.chosen for p in pairs] + [p.prompt + p.rejected for p in pairs]
    hidden = hidden_of_padded(model, sequences, device, padding)
    return torch.cat([hidden[number, : len(sequence)] for number, sequence in enumerate(sequences)])


def _between_kernels(
    model: nn.Module, pairs: list[TokenPair], device: torch.device, separate: Tensor, own: str
) -> float:
    """How much the same separate rows differ when attention is computed step by step, as transformers' `eager` does."""
    if own == "eager":
        return 0.0
    try:
        attention.install(model, "eager")
        gap = _difference(_rows_of_padded(model, pairs, device, 0), separate)
    except Exception:  # a foreign architecture may have no other attention; then only the paddings say what rounding is
        return 0.0
    finally:
        attention.install(model, own)
    return gap if math.isfinite(gap) else 0.0


def _visible(model: nn.Module, pairs: list[TokenPair], device: torch.device) -> float:
    """How much rejected changes when it sees chosen, as it would in a row whose layout the model ignores."""
    right = hidden_of_padded(model, [p.prompt + p.rejected for p in pairs], device)
    wrong = hidden_of_padded(model, [p.prompt + p.chosen + p.rejected for p in pairs], device)
    ends = [(len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs]
    first = torch.cat([right[i, p : p + r] for i, (p, _, r) in enumerate(ends)])
    second = torch.cat([wrong[i, p + c : p + c + r] for i, (p, c, r) in enumerate(ends)])
    return _difference(second, first)


def _by_pair(rows: Tensor, pairs: list[TokenPair]) -> Tensor:
    """Rows of [chosen of all | rejected of all] in the order [chosen, rejected] of each pair."""
    lengths = [len(p.prompt) + len(p.chosen) for p in pairs] + [len(p.prompt) + len(p.rejected) for p in pairs]
    parts = rows.split(lengths)
    n = len(pairs)
    return torch.cat([parts[i + n * side] for i in range(n) for side in (0, 1)])


def _rows_of_packed(model: nn.Module, pairs: list[TokenPair], device: torch.device, layout: Packed) -> Tensor:
    """The same rows taken from a packed row."""
    # a packed row leaves out last tokens; one more, never looked at, keeps the real ones
    longer = [TokenPair(p.row, p.prompt, [*p.chosen, p.chosen[0]], [*p.rejected, p.rejected[0]]) for p in pairs]
    pack = build_pack(longer, range(len(pairs))).to(device)
    hidden = hidden_of(model, pack, layout.mask(model, pack))
    by_start = {segment.start: segment for segment in pack.segments}
    starts = sorted(by_start)
    chosen, rejected = [], []
    for i in range(len(pairs)):
        prefix, first, second = (by_start[start] for start in starts[3 * i : 3 * i + 3])
        prompt = hidden[prefix.start : prefix.start + prefix.length]
        chosen += [prompt, hidden[first.start : first.start + first.length]]
        rejected += [prompt, hidden[second.start : second.start + second.length]]
    return torch.cat(chosen + rejected)


def _difference(rows: Tensor, separate: Tensor) -> float:
    """Relative difference, root mean square; infinite when anything is not finite."""
    gap = (rows.double() - separate.double()).norm() / separate.double().norm().clamp(min=1e-12)
    return float(gap) if torch.isfinite(gap) else float("inf")


@contextlib.contextmanager
def _short_window(model: nn.Module) -> Iterator[None]:
    """Every sliding window of the model at most `WINDOW` for a while, in its modules and its configuration."""
    holders = {
        id(h): h for module in model.modules() for h in (module, getattr(module, "config", None)) if h is not None
    }
    changed: list[tuple[Any, int]] = []
    for holder in holders.values():
        window = getattr(holder, "sliding_window", None)
        if isinstance(window, int) and not isinstance(window, bool) and window > WINDOW:
            changed.append((holder, window))
            holder.sliding_window = WINDOW
    try:
        yield
    finally:
        for holder, window in changed:
            holder.sliding_window = window
