"""The run that an export starts from: its record, base, adapter and tokenizer, found and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from qdpo.errors import InputMissingError
from qdpo.files import MANIFEST, manifest_problems, read_json
from qdpo.hardware import find_device
from qdpo.model.adapter import Adapter
from qdpo.model.merged import MergedModel
from qdpo.model.nf4 import Quantization
from qdpo.model.stored_base import StoredBase, stored_base
from qdpo.model.tensors import TensorFiles
from qdpo.run.base import base_of, check_base
from qdpo.run.folder import ADAPTER, NAME_A_RUN, RECORD, read_record
from qdpo.run.schema import Record
from qdpo.run.tokenizer import files_of, has_tokenizer

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of runs, as config/schema.py has them."""

MergeBase = Literal["trained", "original"]


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run.

    Attributes:
        folder: the run directory.
        facts: what `run.json` holds.
        base: folder of the base's `config.json` and safetensors.
        adapter: folder of the trained adapter and its tokenizer.
    """

    folder: Path
    facts: Record
    base: Path
    adapter: Path

    @property
    def name(self) -> str:
        return str(self.facts.name)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The record as run.json holds it."""
        return self.facts.as_dict()

    def merged(self, merge_base: MergeBase) -> MergedModel:
        """The run's model, as a source of merged tensors.

        Args:
            merge_base: `trained` merges into the base as the training saw it (rounded to NF4 and dequantised),
                `original` into the base as it is on disk.

        Raises:
            InputMissingError: base and adapter cannot be merged.
        """
        told = self.facts.quantization.model_dump(exclude_unset=True)
        quantization = Quantization.from_record(told) if merge_base == "trained" else None
        files, adapter = TensorFiles.of_folder(self.base), Adapter(self.adapter)
        config = read_json(self.base / "config.json")
        if quantization is not None and (stored := self._stored(files, quantization)):
            return MergedModel(config, stored, adapter, quantization.rounded_already)
        return MergedModel(config, files, adapter, quantization)

    def _stored(self, files: TensorFiles, quantization: Quantization) -> StoredBase | None:
        """The base in NF4 as it is kept: by the kind of device that the run was trained on, else by this machine's."""
        weights = self.facts.base.weights_sha256
        if quantization.method != "nf4" or weights is None:
            return None
        kinds = dict.fromkeys([self.facts.hardware.kind or "cpu", find_device().kind])
        return next((found for kind in kinds if (found := stored_base(weights, files, quantization, kind))), None)

    def tokenizer_files(self) -> list[Path]:
        """The tokenizer as it was used in training (saved beside the adapter), else the base's."""
        for folder in (self.adapter, self.base):
            if has_tokenizer(folder):
                return files_of(folder)
        raise InputMissingError(f"neither {self.adapter} nor {self.base} has a tokenizer")


def load_run(folder: Path) -> TrainedRun:
    """Read a run directory.

    Raises:
        InputMissingError: it is not one, the run has no adapter yet, or the base is not there any more.
    """
    found = read_record(folder)
    adapter = folder / ADAPTER
    if not adapter.is_dir():
        state = found.state or "unknown"
        raise InputMissingError(
            f"{folder} has no adapter/ yet (the run's state is {state!r})", "let the training finish, or resume it"
        )
    if (adapter / MANIFEST).is_file() and (problems := manifest_problems(adapter)):
        raise InputMissingError(
            f"{adapter} has changed since it was written: {'; '.join(problems[:3])}",
            "restore it, or train again; an export of it would not be what was trained",
        )
    if found.name is None or found.base.name is None:
        raise InputMissingError(f"{folder / RECORD} has no `name` or no `base`", NAME_A_RUN)
    if not NAME.fullmatch(found.name):
        # It becomes part of file names, and the run may come from somebody else.
        raise InputMissingError(f"{folder / RECORD}: {found.name[:80]!r} is no name of a run", NAME_A_RUN)
    base = base_of(folder)
    check_base(base, found.base)
    return TrainedRun(folder, found, base.folder, adapter)
