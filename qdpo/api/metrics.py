"""What a run has measured, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from qdpo.errors import UnavailableError
from qdpo.run.record import RunRecord

Part = Literal["train", "held-out"]


@dataclass(frozen=True)
class Row:
    """The metrics of one logged step, or of one evaluation; `row["rewards/margins"]` is one of them.

    Attributes:
        step: optimizer step, 0 before the first.
        part: of the pairs that the step learned from, or of the held-out pairs.
        values: by TRL's names: `loss`, `rewards/margins`, `rewards/accuracies`, `logps/chosen` and others.
    """

    step: int
    part: Part
    values: dict[str, float] = field(repr=False)

    def __getitem__(self, name: str) -> float:
        return self.values[name]


class Metrics(list[Row]):
    """All rows of a run in order of step, a step's evaluation after its training row."""

    @classmethod
    def of(cls, record: RunRecord) -> Metrics:
        """The rows that a run directory holds."""
        parts: tuple[tuple[Part, list[dict[str, Any]]], ...] = (("train", record.train), ("held-out", record.evals))
        rows = [Row(int(row["step"]), part, _numbers(row)) for part, found in parts for row in found]
        return cls(sorted(rows, key=lambda row: row.step))

    def curve(self, name: str, part: Part = "held-out") -> list[tuple[int, float]]:
        """Step and value of one metric, wherever it was measured: `run.metrics.curve("rewards/margins")`."""
        return [(row.step, row[name]) for row in self if row.part == part and name in row.values]

    def to_pandas(self) -> Any:
        """A pandas DataFrame with columns `step`, `part` and one per metric.

        Raises:
            UnavailableError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UnavailableError("pandas is not installed", "pip install pandas, or use the rows") from error
        return pandas.DataFrame([{"step": row.step, "part": row.part, **row.values} for row in self])


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
