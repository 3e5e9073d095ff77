"""What the user asked to export."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdpo.export.source import MergeBase, Run


@dataclass(frozen=True)
class Request:
    """One export.

    Attributes:
        run: the run that is exported.
        out: where the export appears.
        merge_base: which base the adapter is merged into, see `Run.merged`.
        dtype: torch name of the stored dtype; None keeps the base's own.
        quants: names of GGUF types, in the order given.
    """

    run: Run
    out: Path
    merge_base: MergeBase = "trained"
    dtype: str | None = None
    quants: tuple[str, ...] = field(default=())

    def record(self, format: str, **details: Any) -> dict[str, Any]:
        """The entry for `export.json`: what was exported, from what, and how."""
        record = self.run.record
        base = record["base"]
        return {
            "format": format,
            "run": record["name"],
            "base": {key: base.get(key) for key in ("name", "revision", "architecture", "license", "weights_sha256")},
            "adapter_sha256": (record.get("result") or {}).get("adapter_sha256"),
            "merge_base": self.merge_base,
            "quantization": {k: v for k, v in record.get("quantization", {}).items() if k != "modules"},
        } | details
