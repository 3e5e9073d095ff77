"""`--pick`: try several GGUF types and keep the smallest that is good enough."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdpo.console import good, say
from qdpo.errors import QdpoError
from qdpo.export.formats import Request
from qdpo.export.gguf.format import chosen_kinds, write_gguf
from qdpo.export.verify.run import verify_export
from qdpo.files import STAGING_PREFIX, scratch_folder

CANDIDATES = ("q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "q8_0")


@contextlib.contextmanager
def picked(request: Request, pairs: int | None) -> Iterator[tuple[Request, list[dict[str, Any]]]]:
    """Export all candidates into a scratch folder beside the export, score them, and choose.

    A candidate is good enough when its verdict is `passed`.

    Args:
        request: what is exported; its types are the candidates, none means `CANDIDATES`.
        pairs: how many held-out pairs are scored; None takes the run's `verify.pairs`.

    Yields:
        the request for the chosen type, whose file is ready to be taken, and the table: one row per candidate with
        type, bytes, verdict, projection, slope, kl.

    Raises:
        QdpoError: none is good enough, or nothing could be scored.
    """
    quants = tuple(quant for quant, _ in chosen_kinds(request.quants or CANDIDATES))
    # Named like a staging folder: if this process is killed, the next export to the same place sweeps it away.
    scratch = request.out.with_name(f"{STAGING_PREFIX}{request.out.name}-pick-{os.getpid()}")
    with scratch_folder(scratch):
        folder = write_gguf(dataclasses.replace(request, out=scratch / "gguf", quants=quants))
        verdict = verify_export(folder, request.run.folder, pairs)
        table = [_row(folder, artefact) for artefact in verdict["artefacts"]]
        table.sort(key=lambda row: row["bytes"])
        chosen = _smallest(table, quants)
        good(f"picked {chosen}: the smallest that is good enough")
        yield dataclasses.replace(request, quants=(chosen,), ready=folder), table


def _smallest(table: list[dict[str, Any]], quants: tuple[str, ...]) -> str:
    """Show the table, and choose."""
    for row in table:
        say(
            f"  {row['type']:<8} {row['bytes']:>14,} bytes  adapter in the weights {_figure(row['projection'])}  "
            f"preference kept {_figure(row['slope'])}  KL {row['kl']:.2g}  {row['verdict']}"
        )
    chosen = next((row for row in table if row["verdict"] == "passed"), None)
    if chosen is None:
        raise QdpoError(
            f"none of {', '.join(quants)} keeps what was trained: {table[-1]['verdict']} even for {table[-1]['type']}",
            "try larger types: --quant q8_0,f16",
        )
    return str(chosen["type"])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _row(folder: Path, artefact: dict[str, Any]) -> dict[str, Any]:
    if "exported" not in artefact["parity"]:
        reason = next(check["detail"] for check in artefact["checks"] if check["name"] in ("scores", "measures"))
        raise QdpoError(f"--pick needs scores, and there are none: {reason}")
    projection, preference = artefact["measures"]["projection"], artefact["measures"]["preference"]
    return {
        "type": artefact["kind"],
        "bytes": (folder / artefact["name"]).stat().st_size,
        "verdict": artefact["verdict"],
        "projection": projection and projection["value"],
        "slope": preference and preference["slope"]["value"],
        "kl": artefact["measures"]["divergence"]["total"]["value"],
    }
