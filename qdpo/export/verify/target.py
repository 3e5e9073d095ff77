"""What an artefact of an export can do (be read back, tokenise, be scored), and the simplest one: a model folder."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qdpo.export.feedback import corrections_of
from qdpo.export.folder import rounded, write_safetensors
from qdpo.export.formats import Request, Way
from qdpo.export.gguf.vocabulary import read_template
from qdpo.export.source import MergeBase, TrainedRun
from qdpo.export.verify.bench import Bench, whole_scorer
from qdpo.export.verify.checks import Check, from_problems
from qdpo.export.verify.projection import Projection, read_both
from qdpo.export.verify.readback import Expected, compare_all
from qdpo.export.verify.scorers import Encode, Scorer
from qdpo.export.verify.vllm_engine import vllm_scorer
from qdpo.export.whole import computing_dtype
from qdpo.files import read_json
from qdpo.model.merged import MergedModel
from qdpo.model.tensors import TensorFiles
from qdpo.progress import Progress

BESIDE = "the same export of the bare base, to measure against; it is removed afterwards:"
"""Said before one is written."""


@dataclass
class Target(ABC):
    """One artefact: a file of an export, or the whole folder.

    Attributes:
        path: the file or folder.
        kind: its precision: a GGUF type, a dtype, or awq.
        run: what it was made from.
        merge_base: which base it was merged into; None for an adapter alone.
    """

    path: Path
    kind: str
    run: TrainedRun
    merge_base: MergeBase | None = None

    in_vllm: ClassVar[bool] = False
    """Whether vLLM loads it."""

    @classmethod
    def of_export(cls, folder: Path, record: dict[str, Any], run: TrainedRun) -> list[Self]:
        """The artefacts of an export: one for each file that its export.json lists."""
        return [cls(folder / name, str(kind), run, record.get("merge_base")) for name, kind in record["files"].items()]

    @property
    def name(self) -> str:
        """Its name in the table."""
        return self.path.name

    @abstractmethod
    def read_back(self, model: MergedModel, twin: Target | None, projection: Projection) -> list[Check]:
        """Compare what is stored with the merged model.

        Args:
            model: the merged model.
            twin: the same export of the bare base; None where there is none.
            projection: takes in what became of the adapter's change.
        """

    @abstractmethod
    def twin(self, scratch: Path) -> Target:
        """The same export of the bare base, rounded in the same way; what is written goes into an empty folder.

        Raises:
            DiskError: there is no room for it.
            QdpoError: it cannot be made here.
        """

    def bare_model(self) -> MergedModel:
        """The base that the adapter was merged into."""
        return self.run.without_adapter().merged(self.merge_base or "original")

    @abstractmethod
    def encoder(self) -> tuple[Encode | None, str]:
        """The artefact's own tokenizer (rendered text to ids), or None; and what it is, or why there is none."""

    @abstractmethod
    def scorer(self, model: MergedModel, bench: Bench) -> contextlib.AbstractContextManager[Scorer]:
        """The artefact in the engine that users run it with, or the closest to it that is installed."""

    def not_run(self) -> list[Check]:
        """What cannot be run on this machine and is done in another way instead, with the reason."""
        return []


@contextlib.contextmanager
def counted(read: Callable[[str], Any], count: int) -> Iterator[Callable[[str], Any]]:
    """A function that reads one of `count` tensors of an artefact, and tells how far the reading back is."""
    with Progress("reading the export back", count, unit="tensors") as progress:

        def one(name: str) -> Any:
            value = read(name)
            progress.advance()
            return value

        yield one


@dataclass
class FolderTarget(Target):
    """Safetensors in the Hugging Face layout.

    Attributes:
        way: how its values were rounded.
    """

    way: Way = "nearest"
    in_vllm = True

    @classmethod
    def of_export(cls, folder: Path, record: dict[str, Any], run: TrainedRun) -> list[Self]:
        way = (record.get("rounding") or {}).get("way", "nearest")
        return [cls(folder, str(record["dtype"]), run, record.get("merge_base"), way)]

    @property
    def name(self) -> str:
        return "safetensors"

    def read_back(self, model: MergedModel, twin: Target | None, projection: Projection) -> list[Check]:
        files, bare = TensorFiles.of_folder(self.path), self.bare_model()
        corrections = corrections_of(self.run, self.way)

        def as_stored(name: str, values: torch.Tensor) -> torch.Tensor:
            return rounded(name, values, files.places[name].dtype, corrections).float()

        def expected(name: str) -> Expected:
            merged, base = read_both(model, bare, name)
            # With feedback the last digit depends on the order in which a machine sums.
            wanted = as_stored(name, merged) if corrections is None else merged
            if base is None or twin is None:
                return Expected(wanted)
            return Expected(wanted, merged - base, lambda: as_stored(name, base))

        def found(name: str) -> tuple[torch.Tensor, str]:
            kind = "float32" if corrections is None else str(files.places[name].dtype).removeprefix("torch.")
            return files.read(name).float(), kind

        names = [name for name in model.names if name in files]
        with counted(found, len(names)) as stored:
            comparison = compare_all(names, stored, expected, projection)
        problems = self._settings_problems(model)
        return [
            comparison.check(set(model.names) - set(files), set(files) - set(model.names)),
            from_problems("settings", problems, "config.json equals the base's; no leftover quantization"),
        ]

    def _settings_problems(self, model: MergedModel, added: str = "") -> list[str]:
        """Where config.json (but for a key that the format adds) and chat template are not those of the run."""
        config = read_json(self.path / "config.json")
        config.pop(added, None)
        wanted = {**model.config, "dtype": config.get("dtype")}
        wanted.pop("torch_dtype", None)
        problems = [
            f"config.json: {key} differs" for key in wanted.keys() | config.keys() if wanted.get(key) != config.get(key)
        ]
        if read_template(self.path) != read_template(self.run.tokenizer_files()[0].parent):
            problems.append("the chat template differs from the run's")
        return problems

    def encoder(self) -> tuple[Encode | None, str]:
        tokenizer = AutoTokenizer.from_pretrained(self.path)
        return lambda text: [int(i) for i in tokenizer.encode(text, add_special_tokens=False)], "transformers"

    def scorer(self, model: MergedModel, bench: Bench) -> contextlib.AbstractContextManager[Scorer]:
        if bench.vllm:
            # vLLM's own choice for float32 is 16 bits.
            return vllm_scorer(bench.vllm, self.path, "float32" if self.kind == "float32" else "auto", bench.context)
        dtype = torch.float32 if self.kind == "float32" else computing_dtype()
        if bench.not_streamed is not None:
            return whole_scorer(AutoModelForCausalLM.from_pretrained(self.path, dtype=dtype), "transformers")
        files = TensorFiles.of_folder(self.path)
        return bench.torch_scorer(read_json(self.path / "config.json"), set(files), files.read, dtype, "transformers")

    def twin(self, scratch: Path) -> Target:
        return RoundedBase(self.path, self.kind, self.run.without_adapter(), self.merge_base, self.way, scratch)


@dataclass
class RoundedBase(FolderTarget):
    """The bare base as safetensors would hold it, rounded when it is read: it is written only for an engine that wants
    files.

    Attributes:
        scratch: an empty folder for these.
    """

    scratch: Path = Path()

    def scorer(self, model: MergedModel, bench: Bench) -> contextlib.AbstractContextManager[Scorer]:
        if bench.vllm:
            assert self.merge_base is not None
            where = self.scratch / "base"
            folder = write_safetensors(Request(self.run, where, self.merge_base, dtype=self.kind, rounding=self.way))
            return FolderTarget(folder, self.kind, self.run, self.merge_base).scorer(model, bench)

        corrections = corrections_of(self.run, self.way)

        def read(name: str) -> torch.Tensor:
            stored = getattr(torch, self.kind) if model.is_float(name) else model.stored_dtype(name)
            return rounded(name, model.read(name), stored, corrections)

        dtype = torch.float32 if self.kind == "float32" else computing_dtype()
        return bench.torch_scorer(model.config, model.names, read, dtype, "transformers")
