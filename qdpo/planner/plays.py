"""Plays of a base under a configuration, each made once and kept under the cache.

A play takes torch, transformers and some tenths of a second; what is kept takes neither.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo.config.schema import RunConfig
from qdpo.errors import QdpoError
from qdpo.files import atomic_write
from qdpo.paths import cache_folder
from qdpo.planner.cards import Card
from qdpo.planner.find import Base, check_counted
from qdpo.planner.lengths import PackShape
from qdpo.planner.settings import compute_type
from qdpo.planner.shapes import Shape
from qdpo.planner.spans import Bytes, Span

if TYPE_CHECKING:
    from qdpo.planner.play import Player

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
KEPT_FILES = 1000
"""Plays that the cache keeps; a file has some kilobytes."""


@dataclass(frozen=True)
class Model:
    """What does not depend on packs.

    Attributes:
        shape: sizes of the whole base.
        stand_in: for each layer of it the number of the played one that stands for it.
        layers: bytes of base and adapter of each played layer, by kind.
        rest: of what is outside of the layers.
        cast: the adapter is copied in half precision.
    """

    shape: Shape
    stand_in: list[int]
    layers: list[Bytes]
    rest: Bytes
    cast: bool

    @property
    def static(self) -> Bytes:
        """Bytes of the whole base with its adapter, by kind."""
        found = dict(self.rest)
        for number in self.stand_in:
            for kind, size in self.layers[number].items():
                found[kind] = found.get(kind, 0) + size
        return found


class Plays:
    """Plays of one base, for one kind of card.

    Args:
        base: the base.
        config: the run's configuration.
        card: what it is planned for.
        kernel: of attention, `sdpa` or `varlen`; None takes the variable-length one where the card has it, which a run
            then finds to be the faster.
    """

    def __init__(self, base: Base, config: RunConfig, card: Card, kernel: str | None = None) -> None:
        self.base, self.config, self.card, self.kernel = base, config, card, kernel
        self.dtype = compute_type(config, base, card)[0]
        packing = config.packing
        self.about = {
            "base": base.config,
            "model": [config.model.quantization, config.model.double_quant, config.model.attn_implementation],
            "lora": config.lora.model_dump(),
            "dropout": config.train.disable_dropout,
            "fused": [packing.fused_lora, packing.fused_mlp, packing.fused_norm, packing.skip_unscored],
            "dtype": self.dtype,
            "kind": self._kind,
            "kernel": kernel,
        }

    @property
    def _kind(self) -> list[Any]:
        # of the compute capability only what the engine looks at
        return ["cpu"] if self.card.capability is None else ["cuda", self.card.capability >= (8, 0)]

    @cached_property
    def _player(self) -> Player:
        import torch

        from qdpo.engine.device import Played
        from qdpo.libraries import quiet_libraries
        from qdpo.planner.play import Player

        quiet_libraries()
        card = Played("cpu" if self.card.is_cpu else "cuda", self.card.capability)
        return Player(self.base.config, self.config, card, getattr(torch, self.dtype), self.kernel)

    def _play(self, what: list[Any], make: Callable[[], Any]) -> Any:
        key = hashlib.sha256(json.dumps([self.about, what, _code()], sort_keys=True).encode()).hexdigest()
        return _known(key, make)

    @cached_property
    def model(self) -> Model:
        """What does not depend on packs.

        Raises:
            UnavailableError: the base cannot be played.
        """
        found = self._play(["model"], lambda: asdict(self._player.model()))
        model = Model(**{**found, "shape": Shape.of(found["shape"])})
        check_counted(self.base, model.shape)
        return model

    def step(self, pack: PackShape, *, all_recomputed: bool, recomputed: bool, kept: bool, several: bool) -> list[Span]:
        """Forward and backward over a pack, see `Player.step`; `all_recomputed` takes the last layer in."""
        again = (True if all_recomputed else None) if recomputed else False

        def play() -> Any:
            return self._player.step(pack.pairs, recomputed=again, kept=kept, several=several)

        return _spans(self._play(["step", pack.pairs, again, kept, several], play))

    def score(self, pack: PackShape, *, adapters: bool, kept: bool = False) -> list[Span]:
        """A pass without gradients, of an evaluation or, without adapters, of the reference."""
        what = ["score", pack.pairs, adapters, kept]
        return _spans(self._play(what, lambda: self._player.score(pack.pairs, adapters, kept)))

    def answers(self, prompts: int, length: int) -> list[Span]:
        """The pass over prompts, and the first one over a token of each."""
        return _spans(self._play(["answers", prompts, length], lambda: self._player.answers(prompts, length)))

    def check(self) -> list[Span]:
        """The comparison of gradients before the first step."""
        return _spans(self._play(["check"], lambda: self._player.check()))


def plays_for(base: Base, config: RunConfig, card: Card, kernel: str | None = None) -> Plays:
    """The plays of a base under a configuration on a card; the same ones where nothing differs that they depend on."""
    plays = Plays(base, config, card, kernel)
    return _made.setdefault(json.dumps([plays.about, base.counted], sort_keys=True), plays)


_made: dict[str, Plays] = {}


def _spans(found: Sequence[Any]) -> list[Span]:
    return [Span(*parts) for parts in found]


@functools.cache
def _code() -> str:
    """What a play depends on besides its inputs: the engine's code, and the libraries'."""
    package = Path(__file__).resolve().parents[1]
    files = sorted(path for part in ("engine", "planner", "model") for path in (package / part).glob("*.py"))
    parts = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return "\n".join([*parts, *(f"{name} {version(name)}" for name in LIBRARIES)])


_here: dict[str, Any] = {}
"""Plays of this process."""


def _known(key: str, make: Callable[[], Any]) -> Any:
    if key in _here:
        return _here[key]
    path = cache_folder("plans") / f"{key}.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        found = json.loads(json.dumps(make()))
        # a plan is made all the same where nothing can be kept
        with contextlib.suppress(OSError, QdpoError):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(found))
            _forget_oldest(path.parent)
    _here[key] = found
    return found


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in files[: max(len(files) - KEPT_FILES, 0)]:
        path.unlink(missing_ok=True)
