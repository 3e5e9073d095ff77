"""What the user asked to export."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdpo.export.awq.plan import Layout
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
        awq_layout: how 4-bit AWQ weights are stored.
        ready: a folder that may hold some of the GGUF files already, made from this run.
    """

    run: Run
    out: Path
    merge_base: MergeBase = "trained"
    dtype: str | None = None
    quants: tuple[str, ...] = field(default=())
    awq_layout: Layout = "compressed-tensors"
    ready: Path | None = None

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
