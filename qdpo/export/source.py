"""The run that an export starts from: its record, base, adapter and tokenizer, found and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qdpo.console import note
from qdpo.errors import InputMissingError
from qdpo.export.adapter import Adapter
from qdpo.export.merged import MergedModel
from qdpo.export.nf4 import Quantization
from qdpo.export.tensors import TensorFiles
from qdpo.files import MANIFEST, manifest_problems, read_json

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of runs, as config/schema.py has them."""

MergeBase = Literal["trained", "original"]

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: the run directory.
        record: what `run.json` holds.
        base: folder of the base's `config.json` and safetensors.
        adapter: folder of the trained adapter and its tokenizer.
    """

    folder: Path
    record: dict[str, Any]
    base: Path
    adapter: Path

    @property
    def name(self) -> str:
        return str(self.record["name"])

    def merged(self, merge_base: MergeBase) -> MergedModel:
        """The run's model, as a source of merged tensors.

        Args:
            merge_base: `trained` merges into the base as the training saw it (rounded to NF4 and dequantised),
                `original` into the base as it is on disk.

        Raises:
            InputMissingError: base and adapter cannot be merged.
        """
        quantization = (
            Quantization.from_record(self.record.get("quantization", {})) if merge_base == "trained" else None
        )
        config = read_json(self.base / "config.json")
        return MergedModel(config, TensorFiles.of_folder(self.base), Adapter(self.adapter), quantization)

    def tokenizer_files(self) -> list[Path]:
        """The tokenizer as it was used in training (saved beside the adapter), else the base's."""
        for folder in (self.adapter, self.base):
            found = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
            if any(path.name in ("tokenizer.json", "tokenizer.model", "vocab.json") for path in found):
                return found
        raise InputMissingError(f"neither {self.adapter} nor {self.base} has a tokenizer")


def load_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        InputMissingError: it is not one, the run has no adapter yet, or the base is not there any more.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise InputMissingError(f"{path} is missing", "give --run the directory that `qdpo train` wrote")
    record = read_json(path)
    adapter = folder / "adapter"
    if not adapter.is_dir():
        state = record.get("state", "unknown")
        raise InputMissingError(
            f"{folder} has no adapter/ yet (the run's state is {state!r})", "let the training finish, or resume it"
        )
    if (adapter / MANIFEST).is_file() and (problems := manifest_problems(adapter)):
        raise InputMissingError(
            f"{adapter} has changed since it was written: {'; '.join(problems[:3])}",
            "restore it, or train again; an export of it would not be what was trained",
        )
    if "name" not in record or "base" not in record:
        raise InputMissingError(f"{path} has no `name` or no `base`", "give the directory that `qdpo train` wrote")
    if not NAME.fullmatch(str(record["name"])):
        # It becomes part of file names, and the run may come from somebody else.
        raise InputMissingError(
            f"{path}: {str(record['name'])[:80]!r} is no name of a run", "give the directory that `qdpo train` wrote"
        )
    base = _find_base(record["base"])
    _check_base(base, record["base"].get("weights_sha256"))
    return Run(folder, record, base, adapter)


def _find_base(base: dict[str, Any]) -> Path:
    recorded = base.get("folder")
    if recorded and (Path(recorded) / "config.json").is_file():
        return Path(recorded)
    from qdpo.model.source import find

    folder = find(base["name"], base.get("revision")).folder
    if recorded:
        note(f"the base is not at {recorded} any more; using {folder}")
    return folder


def _check_base(folder: Path, recorded: str | None) -> None:
    if recorded is None:
        return
    from qdpo.model.source import Source
    from qdpo.model.weights import weights_sha256

    if weights_sha256(Source(str(folder), folder, None)) != recorded:
        raise InputMissingError(
            f"the weights in {folder} are not those that were trained on (their SHA-256 differs from run.json's)",
            "give the base back its old weights; a merge into other weights is another model",
        )
