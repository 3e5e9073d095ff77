"""Training on the grid of a GGUF type: found for the base when a run begins, kept beside its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qdpo.config.schema import RunConfig
from qdpo.errors import ConfigError
from qdpo.files import read_json, sha256_file
from qdpo.model.grid_file import GRIDS, Grids, save_grids
from qdpo.training import parallel
from qdpo.training.stages.state import RunState

if TYPE_CHECKING:
    from peft import PeftModel


def check_grid(config: RunConfig) -> None:
    """Whether a run can be trained on the grid that it asks for, before anything is loaded.

    Raises:
        ConfigError: it cannot.
    """
    if config.train.grid is None:
        return
    from qdpo.export.gguf.trained_grids import check_kind

    check_kind(config.train.grid)
    if parallel.world() > 1:
        raise ConfigError("train.grid trains in one process", "leave it out, or use one GPU")


def begin_on_grid(run: RunState, policy: PeftModel) -> None:
    """Put the policy on its grids, if it shall be trained on some.

    Raises:
        ConfigError: a resumed run finds other grids than it began with.
        UnavailableError: a matrix would be seen without its grid.
    """
    from qdpo.engine.on_grid import put_on_grid
    from qdpo.export.gguf.trained_grids import fit_grids
    from qdpo.training.invariants import Check

    kind, path = run.config.train.grid, run.folder / GRIDS
    if kind is None:
        return
    if run.resume is None or not path.is_file():
        config = read_json(Path(str(run.record.base.folder)) / "config.json")
        save_grids(path, kind, fit_grids(policy.get_base_model(), config, kind))
    count = put_on_grid(policy, Grids(path))
    run.save(adapter=run.record.adapter.model_copy(update={"grids_sha256": sha256_file(path)}))
    size = path.stat().st_size / 1e6
    run.checks.append(Check("grid", f"{count} matrices are seen as a {kind} file holds them ({size:.1f} MB)").say())
