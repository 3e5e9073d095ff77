"""How the tensors of a GGUF export are rounded: to the nearest level, or with feedback from one column to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from qdpo.errors import InputMissingError
from qdpo.export.feedback import Corrections, Feedback, corrections_of, round_columns, round_floats, way_of
from qdpo.export.formats import Way
from qdpo.export.gguf.chunks import row_chunks
from qdpo.export.gguf.encode import encode
from qdpo.export.gguf.families import family_of, to_gguf
from qdpo.export.gguf.fits import fit
from qdpo.export.gguf.imatrix import Imatrix, checked, quantize_keys, read_imatrix
from qdpo.export.gguf.kinds import KINDS, Kind
from qdpo.export.gguf.packing import pack
from qdpo.export.moments import moments_of_run, take_moments
from qdpo.export.source import TrainedRun
from qdpo.model.grid_file import Grids
from qdpo.model.grids import LAYOUTS
from qdpo.model.merged import MergedModel
from qdpo.model.moments import MOMENTS, Moments

FLOATS = {Type.F16: torch.float16, Type.BF16: torch.bfloat16}

AUTO, NONE = "auto", "none"
"""`--imatrix` without a file: what the moments say, or nothing."""


@dataclass(frozen=True)
class Rounding:
    """How tensors are rounded.

    Attributes:
        imatrix: `auto`, `none` or a file.
        moments: of the layers' inputs; None where they are not known.
        corrections: for rounding with feedback; None takes the nearest level.
        given: what the file of importances holds; None without one.
        importances: of it by GGUF name, float32 [columns]; they weigh errors when a grid is found.
        grids: that the run was trained on, which are taken as they are; None where grids are found.
        rows: puts the rows of a tensor into the file's order.
    """

    imatrix: str
    moments: Moments | None
    corrections: Corrections | None
    given: Imatrix | None
    importances: Mapping[str, Tensor]
    grids: Grids | None
    rows: Callable[[str, Tensor], Tensor]

    def of_file(self, kind: Kind) -> Rounding:
        """How the tensors of one file are rounded: the grids that the run was trained on are those of one kind."""
        if self.grids is None or KINDS.get(self.grids.kind) != kind:
            return replace(self, grids=None)
        return replace(self, imatrix=NONE, corrections=None, given=None, importances={})

    @property
    def has_importance(self) -> bool:
        """Whether grids are found by the importance of columns; llama.cpp gives some tensors other types then."""
        return self.given is not None or (self.imatrix == AUTO and self.moments is not None)

    def record(self) -> dict[str, Any]:
        """For export.json."""
        return {"way": way_of(self.corrections), "imatrix": self.imatrix}

    def keys(self) -> dict[str, str | int]:
        """What a rounded file says of its importance matrix, with llama.cpp's keys; nothing without one."""
        if self.given is not None:
            return quantize_keys(self.given, Path(self.imatrix).name)
        if not self.has_importance or self.moments is None:
            return {}
        return {
            "quantize.imatrix.file": MOMENTS,
            "quantize.imatrix.dataset": self.moments.about.texts,
            "quantize.imatrix.entries_count": len(self.moments.names),
        }

    def encode(self, name: str, gguf_name: str, values: Tensor, kind: Type) -> np.ndarray:
        """One tensor as GGUF stores it.

        Args:
            name: the tensor's in transformers.
            gguf_name: the same in the file.
            values: float32, rows in the file's order.
            kind: the type.

        Raises:
            InputMissingError: the values are too large for the type.
        """
        if self.grids and (grid := self.grids.of(name)):
            grid = grid.rows(lambda part: self.rows(name, part))
            return pack(grid, grid.levels(values)).numpy()
        feedback = self.corrections.of(name) if self.corrections and values.ndim == 2 else None
        if feedback is not None and kind in FLOATS:
            values = round_floats(values, feedback, FLOATS[kind]).float()
        if kind not in LAYOUTS:
            return encode(name, values, kind)
        importance = self.importances.get(gguf_name)
        if importance is None and self.imatrix == AUTO and self.moments and (moment := self.moments.of(name)):
            importance = moment.diagonal
        if feedback is None:
            return encode(name, values, kind, importance)
        try:
            return round_with_feedback(values, kind, importance, feedback).numpy()
        except OverflowError as error:
            raise InputMissingError(f"{name}: {error}", "export bf16 or q8_0") from error


def rounding_of(run: TrainedRun, model: MergedModel, way: Way | None, imatrix: str | None) -> Rounding:
    """How a run's export is rounded.

    Args:
        run: the run.
        model: what is exported of it.
        way: as asked for; None takes feedback where the run has moments.
        imatrix: `auto` (None), `none` or a file.

    Raises:
        InputMissingError: the file cannot be read, or is of another model.
        UnavailableError: moments were asked for and cannot be taken.
    """
    if imatrix == AUTO and moments_of_run(run) is None:
        take_moments(run)
    corrections = corrections_of(run, way)
    moments = moments_of_run(run)
    asked = imatrix or (NONE if moments is None else AUTO)
    given = None if asked in (AUTO, NONE) else read_imatrix(Path(asked))
    rows = partial(to_gguf, family_of(model.config), model.config)
    return Rounding(asked, moments, corrections, given, _checked(given, asked, model), model.grids, rows)


def _checked(given: Imatrix | None, file: str, model: MergedModel) -> dict[str, Tensor]:
    """The importances of a file by GGUF name, which must be those of the model."""
    if given is None:
        return {}
    names = gguf.get_tensor_name_map(family_of(model.config).arch, model.config["num_hidden_layers"])
    found = {names.get_name(name, try_suffixes=(".weight", ".bias")): model.shape(name) for name in model.names}
    return checked(given, {str(name): shape[1] for name, shape in found.items() if len(shape) == 2}, file)


def round_with_feedback(values: Tensor, kind: Type, importance: Tensor | None, feedback: Feedback) -> Tensor:
    """Fit the grid, choose levels column by column, and pack them: uint8 [rows, bytes per row] on the CPU.

    Args:
        values: float32 [rows, columns].
        kind: any of `grids.LAYOUTS`.
        importance: float32 [columns] or None.
        feedback: of the layer's inputs.

    Raises:
        OverflowError: values are too large for the type.
    """
    encoded: dict[int, Tensor] = {}

    def round_rows(start: int, rows: Tensor) -> None:
        grid = fit(rows, kind, importance, rows.device)
        levels = round_columns(rows, feedback.to(rows.device), grid.by_column().round)
        encoded[start] = pack(grid, levels).cpu()

    row_chunks(round_rows, values, None, by_column=True)
    return torch.cat([encoded[start] for start in sorted(encoded)])
