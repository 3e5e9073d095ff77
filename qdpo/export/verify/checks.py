"""What a check says: passed, failed, or not run and why; and the check that every byte is still what was written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from qdpo.export.output import ADDED_LATER
from qdpo.files import MANIFEST, manifest_problems


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


def from_problems(name: str, problems: list[str], good: str) -> Check:
    """A check that passes when there are no problems; else it shows how many, and the first ones."""
    if not problems:
        return Check(name, True, good)
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return Check(name, False, "; ".join(problems[:3]) + more)


def check_integrity(folder: Path) -> Check:
    """Compare sizes and SHA-256 of all files of an export with its manifest."""
    later = {f"{name} is not in the manifest" for name in ADDED_LATER}
    if problems := [problem for problem in manifest_problems(folder) if problem not in later]:
        return from_problems("integrity", problems, "")
    files = json.loads((folder / MANIFEST).read_text())["files"]
    total = sum(entry["bytes"] for entry in files.values())
    return Check("integrity", True, f"{len(files)} files, {total:,} bytes match their SHA-256")
