"""The numbers of a session on a GPU, as JSON: card, versions, what was measured, how each test ended."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from qdpo import __version__
from qdpo.hardware import find_device
from qdpo.run.folder import now, versions
from qdpo.training.run import describe


def card_name() -> str:
    """The card's name as part of a file name: `NVIDIA H200` is `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", find_device().name.lower()).strip("-")


class Results:
    """What was measured, by the name of the test that did.

    Attributes:
        values: numbers by topic.
        tests: outcome and seconds of every test, its fixtures included.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.tests: dict[str, dict[str, Any]] = {}

    def add(self, topic: str, values: Any) -> None:
        """Keep the numbers of a topic."""
        self.values[topic] = values

    def note(self, test: str, when: str, outcome: str, seconds: float) -> None:
        """One phase of a test: a test has passed when all of its phases have."""
        entry = self.tests.setdefault(test, {"outcome": "passed", "seconds": 0.0})
        entry["seconds"] = round(entry["seconds"] + seconds, 2)
        if outcome != "passed":
            entry["outcome"] = outcome if when == "call" or outcome == "skipped" else f"{outcome} in {when}"

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "created": now(),
            "card": {**describe(find_device()).model_dump(), "cuda": torch.version.cuda},
            "versions": {"qdpo": __version__, **versions()},
            "measured": self.values,
            "tests": self.tests,
        }

    def write(self, path: Path) -> None:
        """Write everything down."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.record(), indent=1) + "\n")
