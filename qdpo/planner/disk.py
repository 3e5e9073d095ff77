"""Bytes on the disk: what is downloaded, what a run writes, what an export writes."""

from __future__ import annotations

from dataclasses import dataclass

from qdpo.config.schema import RunConfig
from qdpo.planner.parts import LORA, adapter_weights, optimizer_bytes
from qdpo.planner.shapes import Shape

STORED = 2
"""Bytes of a weight of a published base (16 bit)."""

SMALL_FILES = 5e6
"""Tokenizer, metrics, plots, card and reports of a run."""


@dataclass(frozen=True)
class Disk:
    """Bytes by purpose.

    Attributes:
        download: the base.
        checkpoints: those that are kept, and the one being written.
        run: the rest of the run directory.
        merged: the merged model in 16 bits.
    """

    download: float
    checkpoints: float
    run: float
    merged: float

    @property
    def training(self) -> float:
        """What training needs."""
        return self.download + self.checkpoints + self.run


def disk(shape: Shape, config: RunConfig, stored: int | None = None) -> Disk:
    """Estimate what a run and its export take.

    Args:
        shape: the model's.
        config: the run's configuration.
        stored: bytes of the base's weight files, where they are known.
    """
    trained = adapter_weights(shape, config)
    adapter = float(LORA * trained)
    one = adapter + optimizer_bytes(config.train.optim, trained)
    download = float(stored if stored is not None else STORED * shape.parameters)
    return Disk(download, (config.train.keep + 1) * one, adapter + SMALL_FILES, float(2 * shape.parameters))
