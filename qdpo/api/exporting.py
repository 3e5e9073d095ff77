"""Exports: written, and proven."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdpo.api.process import borrowed
from qdpo.errors import UsageError
from qdpo.export.formats import FORMATS, Layout, Request, Way, check_options
from qdpo.export.source import MergeBase, load_run
from qdpo.paths import output_path, refuse_link, refuse_links_out
from qdpo.progress import waiting
from qdpo.report.refresh import refresh
from qdpo.run.folder import EXPORT, sweep_exports


@dataclass(frozen=True)
class Proof:
    """What verifying an export has found.

    Attributes:
        verdict: `passed`; `lost`: it has lost what was trained; `cannot be told`: too little could be measured;
            `failed`: it is damaged, or not what it should be.
        details: what verify.json holds; docs/export.md describes it.
    """

    verdict: str
    details: dict[str, Any]

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"<Proof: {self.verdict}>"

    @property
    def passed(self) -> bool:
        """Whether it is whole and keeps what was trained."""
        return self.verdict == "passed"


@dataclass(frozen=True)
class Export:
    """A model that was written for other programs.

    Attributes:
        path: its folder.
        run: the run directory that it came from; None looks for it above the folder.
    """

    path: Path
    run: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Its files, by name."""
        return sorted(path for path in self.path.iterdir() if path.is_file())

    def verify(self, pairs: int | None = None, *, vllm: str | os.PathLike[str] | None = None) -> Proof:
        """Check bytes, tensors, tokens and preferences on held-out pairs, and renew the run's card.

        Args:
            pairs: held-out pairs to score; None takes the run's `verify.pairs`.
            vllm: the Python of an environment with vLLM, which then scores the export (safetensors and AWQ).

        Raises:
            UsageError: vLLM does not load this format.
            InputMissingError: it is no export, or its run is not found.
        """
        from qdpo.export.verify.run import find_run, verify_export

        check_pairs(pairs)
        with borrowed():
            found = verify_export(self.path, self.run, pairs, Path(vllm) if vllm else None)
            refresh(self.run or find_run(self.path))
        return Proof(found["verdict"], found)


def write(
    run: Path,
    format: str,
    *,
    quants: tuple[str, ...],
    out: str | os.PathLike[str] | None,
    merge_base: MergeBase,
    dtype: str | None,
    awq_layout: Layout | None,
    rounding: Way | None,
    imatrix: str | os.PathLike[str] | None,
    pick: bool,
    pairs: int | None,
    verified: bool = False,
) -> Export:
    """Write a run's export and renew the run's card; `Run.export` says what the arguments mean.

    With `verified` the memory that its verification will take must be there before anything is written.
    """
    check_pairs(pairs)
    if format not in FORMATS:
        raise UsageError(f"there is no export format {format!r}", f"formats: {', '.join(FORMATS)}")
    given = {"dtype": dtype, "quant": quants, "awq_layout": awq_layout, "pick": pick}
    check_options(format, given | {"rounding": rounding, "imatrix": imatrix})
    place = _place(run, format, out)
    sweep_exports(run)
    if verified or pick:
        from qdpo.export.verify.need import require_memory

        require_memory(run)
    with waiting("reading the run and its base"):
        found = load_run(run, as_trained=merge_base == "trained" and format != "gguf-lora")
    request = Request(
        run=found,
        out=place,
        merge_base=merge_base,
        dtype=dtype,
        quants=quants,
        awq_layout=awq_layout or "compressed-tensors",
        rounding=rounding,
        imatrix=None if imatrix is None else os.fspath(imatrix),
    )
    if pick:
        from qdpo.export.pick import picked

        with picked(request, pairs) as (chosen, _):
            folder = FORMATS[format].write(chosen)
    else:
        folder = FORMATS[format].write(request)
    refresh(run)
    return Export(folder, run)


def check_pairs(pairs: int | None) -> None:
    """Raises UsageError for a number of pairs that is none."""
    if pairs is not None and pairs < 1:
        raise UsageError(f"--pairs {pairs}: at least one pair is needed")


def _place(run: Path, format: str, out: str | os.PathLike[str] | None) -> Path:
    """The folder of the export.

    Raises:
        OutputError: no folder can have the name, or it is a link that leads somewhere else.
    """
    if out is None:
        refuse_links_out(run)
        return run / EXPORT / format
    place = output_path(out, "--out")
    refuse_link(place, "--out")
    return place
