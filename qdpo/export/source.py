"""The run that an export starts from: its record, base, adapter and tokenizer, found and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from qdpo.errors import InputMissingError
from qdpo.files import MANIFEST, manifest_problems, read_json
from qdpo.hardware import find_device
from qdpo.model.adapter import Adapter
from qdpo.model.blueprint import blueprint
from qdpo.model.grid_file import GRIDS, Grids
from qdpo.model.merged import MergedModel
from qdpo.model.nf4 import Quantization
from qdpo.model.source import Source
from qdpo.model.stored_base import StoredBase, find_or_make, stored_base
from qdpo.model.tensors import TensorFiles
from qdpo.model.weights import known_weights_sha256
from qdpo.run.base import base_of, check_base
from qdpo.run.folder import ADAPTER, CONFIG, NAME_A_RUN, RECORD, read_record, reopen
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
        bare: whether the adapter is left out of what is merged, so that an export is one of the base alone.
    """

    folder: Path
    facts: Record
    base: Path
    adapter: Path
    bare: bool = False

    @property
    def name(self) -> str:
        return str(self.facts.name)

    @property
    def adapter_sha256(self) -> str | None:
        """Of the adapter's weights, as the end of the training recorded it."""
        return (self.record.get("result") or {}).get("adapter_sha256")

    @property
    def base_on_hub(self) -> bool:
        """Whether the base came from the hub: only then has it a commit."""
        return re.fullmatch(r"[0-9a-f]{40}", self.facts.base.revision or "") is not None

    @property
    def public_base(self) -> str:
        """The base's name on the hub; of a folder on this machine the last component."""
        name = str(self.facts.base.name)
        return name if self.base_on_hub else Path(name).name

    @cached_property
    def record(self) -> dict[str, Any]:
        """The record as run.json holds it."""
        return self.facts.as_dict()

    @cached_property
    def grids(self) -> Grids | None:
        """Those that it was trained on; None for none.

        Raises:
            InputMissingError: they are damaged.
        """
        path = self.adapter / GRIDS
        return Grids(path) if path.is_file() else None

    def merged(self, merge_base: MergeBase) -> MergedModel:
        """The run's model, as a source of merged tensors.

        Args:
            merge_base: `trained` merges into the base as the training saw it (rounded to NF4 and dequantised; on the
                run's grids, where it was trained on some), `original` into the base as it is on disk.

        Raises:
            InputMissingError: base and adapter cannot be merged.
        """
        return self._merged(None if self.bare else Adapter(self.adapter), merge_base)

    def without_adapter(self) -> TrainedRun:
        """The same run, exports of which are those of its base alone."""
        return replace(self, bare=True)

    def base_as_trained(self) -> MergedModel:
        """The base alone, as the training saw it.

        Raises:
            InputMissingError: run.json does not say how the base was loaded, or it is another one.
        """
        return self._merged(None, "trained")

    def _merged(self, adapter: Adapter | None, merge_base: MergeBase) -> MergedModel:
        config, files = read_json(self.base / "config.json"), TensorFiles.of_folder(self.base)
        if merge_base == "original":
            return MergedModel(config, files, adapter, None)
        quantization, grids = quantization_of(self.facts), self.grids
        if stored := self._stored(files, quantization):
            return MergedModel(config, stored, adapter, quantization.rounded_already, grids)
        return MergedModel(config, files, adapter, quantization, grids)

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


def quantization_of(facts: Record) -> Quantization:
    """How a run's base was rounded.

    Raises:
        InputMissingError: run.json does not say it.
    """
    return Quantization.from_record(facts.quantization.model_dump(exclude_unset=True))


def load_run(folder: Path, *, as_trained: bool = False) -> TrainedRun:
    """Read a run directory.

    Args:
        folder: the run directory.
        as_trained: its base will be needed as the training saw it: it is rounded now, in the pass that hashes its
            files, and kept where the run's configuration keeps it.

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
    if as_trained and (folder / CONFIG).is_file():
        _keep_base(folder, found, base)
    check_base(base, found.base)
    return TrainedRun(folder, found, base.folder, adapter)


def _keep_base(folder: Path, facts: Record, base: Source) -> None:
    """Put a run's base into the store, if it is not there and shall be."""
    config, how = reopen(folder).config, quantization_of(facts)
    other = known_weights_sha256(base) not in (None, facts.base.weights_sha256)
    if how.method != "nf4" or config.backend != "hf" or other:
        return
    section = config.model.model_copy(update={"double_quant": how.double_quant})
    plan = blueprint(base, section, how.load_dtype, how.blocksize)
    if plan is not None and plan.quantization == how:
        find_or_make(plan, section.nf4_cache, find_device().torch)
