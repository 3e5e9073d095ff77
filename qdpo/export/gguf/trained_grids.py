"""The grids that a GGUF file of a base would have, for a training that sees its weights on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qdpo.errors import ConfigError, UsageError
from qdpo.export.gguf.convert import mapped, types_of
from qdpo.export.gguf.families import family_of
from qdpo.export.gguf.fits import fit
from qdpo.export.gguf.kinds import KINDS
from qdpo.model.grids import LAYOUTS, Grid
from qdpo.model.rounding import dequantize
from qdpo.progress import Progress


def check_kind(kind: str) -> None:
    """Whether `train.grid` names a type whose levels are evenly spaced, so that thresholds keep a change on average.

    Raises:
        ConfigError: it does not.
    """
    even = [name for name, entry in KINDS.items() if entry.type in LAYOUTS and not LAYOUTS[entry.type].codebook]
    if kind not in even:
        raise ConfigError(
            f"train.grid: {kind!r} is no GGUF type whose levels are evenly spaced", f"there are {', '.join(even)}"
        )


def fit_grids(model: Any, config: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Grid]]:
    """Tensor by tensor the grid of each matrix that a file of a kind rounds, found for the base as it was loaded.

    Args:
        model: the base, with or without adapter layers.
        config: its config.json.
        kind: one of `KINDS`.

    Raises:
        ConfigError: a file of that kind cannot be made of the model.
    """
    weights = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }
    states: dict[str, Any] = {name: getattr(parameter, "quant_state", None) for name, parameter in weights.items()}
    shapes = {name: tuple((states[name] or parameter).shape) for name, parameter in weights.items()}
    try:
        types = types_of(KINDS[kind], mapped(family_of(dict(config)), config, shapes), config)
    except UsageError as error:
        raise ConfigError(f"train.grid: {error.message}", "choose another type") from error
    wanted = {name: entry for name, entry in types.items() if entry in LAYOUTS}
    with Progress(f"finding the grids of {kind}", len(wanted), unit="matrices") as progress:
        for name, entry in wanted.items():
            weight = weights[name].detach()
            whole = weight if states[name] is None else dequantize(weight, states[name])
            yield name, fit(whole.float(), entry, device=weight.device)
            progress.advance(1)
