"""Is every byte of an export still what was written?"""

from __future__ import annotations

import json
from pathlib import Path

from qdpo.export.output import ADDED_LATER
from qdpo.export.verify.checks import Check, from_problems
from qdpo.files import MANIFEST, manifest_problems


def check_integrity(folder: Path) -> Check:
    """Compare sizes and SHA-256 of all files with the manifest."""
    later = {f"{name} is not in the manifest" for name in ADDED_LATER}
    problems = [problem for problem in manifest_problems(folder) if problem not in later]
    if problems:
        return from_problems("integrity", problems, "")
    files = json.loads((folder / MANIFEST).read_text())["files"]
    total = sum(entry["bytes"] for entry in files.values())
    return Check("integrity", True, f"{len(files)} files, {total:,} bytes match their SHA-256")
