"""What a run will need, before anything is downloaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from qdpo.api.config import Config, Overrides, settled
from qdpo.api.process import borrowed
from qdpo.export.gguf.sizes import gguf_bytes
from qdpo.planner import plan as planner
from qdpo.planner.auto import Choice, choose
from qdpo.planner.cards import card_for
from qdpo.planner.data import lengths_for
from qdpo.planner.find import find_base
from qdpo.planner.view import lines

GGUF = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")


@dataclass(frozen=True, repr=False)
class Plan(planner.Plan):
    """A plan, and the sizes of what can be exported; printed, it says all of it.

    Attributes:
        gguf: bytes of the GGUF files by type.
        choices: what `auto` has chosen, with reasons.
    """

    gguf: dict[str, int]
    choices: list[Choice]

    def as_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """For JSON; bytes, seconds, tokens."""
        return super().as_dict(self.gguf)

    def __repr__(self) -> str:
        return "\n".join(lines(self, self.gguf))


def plan(
    config: str | os.PathLike[str] | Config, overrides: Overrides = None, *, gpu: str | None = None, auto: bool = False
) -> Plan:
    """Estimate memory, time and disk of a run on a card.

    Nothing is downloaded but a base's config.json and header. The base need not be here, nor the card.

    >>> import qdpo
    >>> plan = qdpo.plan("quickstart", gpu="t4")
    >>> plan.verdict.kind
    'fits'

    Args:
        config: a preset's name, a YAML file, or a `Config`.
        overrides: settings by their dotted key.
        gpu: a card's name (`t4`, `RTX 4090`, `a100-80`), its memory (`24GiB`), or `cpu` for this machine's processor;
            None takes what is found here, else the preset's card.
        auto: choose budgets, checkpointing and optimizer for the card.

    Returns:
        The plan: `print` it, or read `estimate`, `verdict`, `duration`, `disk`.

    Raises:
        QdpoError: the configuration, the card or the base is not to be had or not known.
    """
    asked = settled(config, overrides)
    card, reason = card_for(gpu, asked.card, asked.gpu_memory_gib)
    with borrowed():
        base = find_base(asked.model.name, asked.model.revision)
        lengths = lengths_for(asked)
        chosen, choices = choose(asked, base, card, lengths) if auto else (asked, [])
        found = planner.plan(chosen, base, card, reason, lengths)
    gguf = {kind: gguf_bytes(found.shape, kind) for kind in GGUF}
    return Plan(**vars(found), gguf=gguf, choices=choices)
