"""How answers are written: how many, by whom, and how tokens are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qdpo.errors import UsageError

By = Literal["base", "run", "both"]


@dataclass(frozen=True)
class Writing:
    """How answers are written.

    Attributes:
        k: answers to each prompt.
        by: who writes them; both take turns.
        seed: of the sampling.
        temperature: 0 takes the likeliest token, above 0 samples.
        top_p: samples from the likeliest tokens that hold this much probability.
        max_new_tokens: tokens of an answer at the most.
        batch_size: answers that are written side by side.

    Raises:
        UsageError: a value that cannot be.
    """

    k: int = 2
    by: By = "base"
    seed: int = 42
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 256
    batch_size: int = 16

    def __post_init__(self) -> None:
        for option, value, least in (
            ("-k", self.k, 2),
            ("--max-new-tokens", self.max_new_tokens, 1),
            ("--batch-size", self.batch_size, 1),
        ):
            if value < least:
                raise UsageError(f"{option} takes a number from {least}, not {value}", f"such as {option} {least}")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise UsageError(
                "--temperature must be at least 0, --top-p above 0 and at most 1", "without them: 0.8 and 0.95"
            )
        if self.temperature == 0 and (self.k > 2 or self.by != "both"):
            raise UsageError(
                "--temperature 0 writes the same answer again and again", "a temperature above 0, or -k 2 --by both"
            )

    @property
    def writers(self) -> list[str]:
        """Who writes each of the k answers: `base` or `run`."""
        return [("run", "base")[number % 2] if self.by == "both" else self.by for number in range(self.k)]
