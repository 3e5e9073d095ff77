"""What a check says: passed, failed, or not run and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One line of the verification table.

    Attributes:
        name: what was checked.
        passed: None when it was not run.
        detail: the figures, the first problem, or why it was not run.
    """

    name: str
    passed: bool | None
    detail: str

    @property
    def word(self) -> str:
        """The result in one word."""
        return "not run" if self.passed is None else "passed" if self.passed else "FAILED"

    def record(self) -> dict[str, Any]:
        """The entry for verify.json."""
        return {"name": self.name, "passed": self.passed, "detail": self.detail}


def from_problems(name: str, problems: list[str], good: str) -> Check:
    """A check that passes when there are no problems; else it shows how many, and the first ones."""
    if not problems:
        return Check(name, True, good)
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return Check(name, False, "; ".join(problems[:3]) + more)
