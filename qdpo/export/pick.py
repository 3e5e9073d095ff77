"""`--pick`: try several GGUF types and keep the smallest that is good enough."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from qdpo.console import good, say
from qdpo.errors import QdpoError
from qdpo.export.gguf.format import chosen_kinds, write_gguf
from qdpo.export.request import Request
from qdpo.export.verify.run import verify_export

CANDIDATES = ("q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "q8_0")
KEPT = 0.9
AGREED = 0.9


def pick(request: Request, pairs: int) -> tuple[str, list[dict[str, Any]]]:
    """Export all candidates into a scratch folder beside the export, score them, and choose.

    A candidate is good enough when no check fails, at least 90 % of the trained margin survives, and at least 90 % of
    the likeliest tokens are those of the trained model.

    Args:
        request: what is exported; its types are the candidates, none means `CANDIDATES`.
        pairs: how many held-out pairs are scored.

    Returns:
        the chosen type, and the table: one row per candidate with type, bytes, margin_kept, kl, top1, good_enough.

    Raises:
        QdpoError: none is good enough, or nothing could be scored.
    """
    quants = request.quants or CANDIDATES
    run = request.run
    request.out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".pick-", dir=request.out.parent))
    try:
        trial = Request(run, scratch / "gguf", request.merge_base, quants=tuple(q for q, _ in chosen_kinds(quants)))
        folder = write_gguf(trial)
        verdict = verify_export(folder, run.folder, pairs)
        table = [_row(folder, artefact) for artefact in verdict["artefacts"]]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    table.sort(key=lambda row: row["bytes"])
    for row in table:
        say(
            f"  {row['type']:<8} {row['bytes']:>14,} bytes  margin kept {row['margin_kept']:.1%}  KL {row['kl']:.2g}  "
            f"top-1 {row['top1']:.1%}  {'good enough' if row['good_enough'] else 'not good enough'}"
        )
    chosen = next((row for row in table if row["good_enough"]), None)
    if chosen is None:
        raise QdpoError(
            f"none of {', '.join(quants)} keeps {KEPT:.0%} of the margin and {AGREED:.0%} of the likeliest tokens",
            "try larger types: --quant q8_0,f16",
        )
    good(f"picked {chosen['type']}: the smallest that is good enough")
    return str(chosen["type"]), table


def _row(folder: Path, artefact: dict[str, Any]) -> dict[str, Any]:
    if "exported" not in artefact["parity"]:
        reason = next(check["detail"] for check in artefact["checks"] if check["name"] == "preference parity")
        raise QdpoError(f"--pick needs scores, and there are none: {reason}")
    row = artefact["parity"]["exported"]
    kept = row["margin_kept"] if row["margin_kept"] is not None else 1.0
    return {
        "type": artefact["kind"],
        "bytes": (folder / artefact["name"]).stat().st_size,
        "margin_kept": kept,
        "kl": row["kl"],
        "top1": row["top1"],
        "good_enough": artefact["passed"] and kept >= KEPT and row["top1"] >= AGREED,
    }
