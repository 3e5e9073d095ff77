"""The formats that a run can be exported to. Adding one is adding a line to `FORMATS`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

from qdpo.errors import InputMissingError, UsageError

if TYPE_CHECKING:
    from qdpo.export.source import MergeBase, TrainedRun
    from qdpo.export.verify.target import Target

Layout = Literal["compressed-tensors", "autoawq"]
Way = Literal["feedback", "nearest"]


@dataclass(frozen=True)
class Request:
    """What the user asked to export.

    Attributes:
        run: the run that is exported.
        out: where the export appears.
        merge_base: which base the adapter is merged into, see `Run.merged`.
        dtype: torch name of the stored dtype; None keeps the base's own.
        quants: names of GGUF types, in the order given.
        awq_layout: how 4-bit AWQ weights are stored.
        rounding: how levels are chosen; None takes feedback where the run has moments.
        imatrix: which errors count more when a grid is found: `auto` (None, by the moments), `none`, or a file.
        ready: a folder that may hold some of the GGUF files already, made from this run.
    """

    run: TrainedRun
    out: Path
    merge_base: MergeBase = "trained"
    dtype: str | None = None
    quants: tuple[str, ...] = ()
    awq_layout: Layout = "compressed-tensors"
    rounding: Way | None = None
    imatrix: str | None = None
    ready: Path | None = None

    def record(self, format: str, **details: Any) -> dict[str, Any]:
        """The entry for `export.json`: what was exported, from what, and how."""
        record = self.run.record
        base = record["base"] | {"name": self.run.public_base}
        return {
            "format": format,
            "run": record["name"],
            "base": {key: base.get(key) for key in ("name", "revision", "architecture", "license", "weights_sha256")},
            "adapter_sha256": self.run.adapter_sha256,
            "merge_base": self.merge_base,
            "quantization": {k: v for k, v in record.get("quantization", {}).items() if k != "modules"},
            "trained_on_grid": self.run.grids.kind if self.run.grids else None,
        } | details


@dataclass(frozen=True)
class Place:
    """Where the reader of a card finds an export.

    Attributes:
        folder: as seen from the card; for a published one, the folder that it is downloaded into.
        files: its GGUF files.
        model: the name of the run.
        repo: the repository on the hub; None for an export in its run directory.
    """

    folder: str
    files: tuple[str, ...]
    model: str
    repo: str | None = None

    def in_a_shell(self, *commands: str) -> Usage:
        """Commands that use the export once it is on this machine."""
        fetch = (f"hf download {quote(self.repo)} --local-dir {quote(self.folder)}",) if self.repo else ()
        return Usage("bash", "\n".join([*fetch, *commands]))


@dataclass(frozen=True)
class Usage:
    """How an export is used: a block of code in `bash` or `python`, and a command that may stand in its place."""

    language: str
    code: str
    instead: str | None = None


@dataclass(frozen=True)
class Format:
    """A format, and all that the rest of qdpo asks of one.

    Attributes:
        about: what it is for, in a few words.
        title: its heading on the card.
        library: what loads it, by the hub's names.
        writer: module and function that write it, imported when it is used.
        target: module and class that read it back and score it, imported when it is used.
        usage: how it is used.
        options: those of `OPTIONS` that belong to it.
    """

    about: str
    title: str
    library: str
    writer: str
    target: str
    usage: Callable[[Place], Usage]
    options: tuple[str, ...]

    def write(self, request: Request) -> Path:
        """Write the export; returns its folder.

        Raises:
            UsageError: the request asks for what the format does not have.
            UnavailableError: an optional part of qdpo is not installed.
            InputMissingError: the run cannot be exported like this.
            DiskError, OutputError: the export cannot be written.
        """
        folder: Path = _load(self.writer)(request)
        return folder


def _load(where: str) -> Any:
    module, name = where.split(":")
    return getattr(importlib.import_module(module), name)


def _in_transformers(place: Place) -> Usage:
    where = place.repo or place.folder
    code = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({json.dumps(where)}, dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained({json.dumps(where)})"""
    return Usage("python", code, instead=f"vllm serve {quote(where)}")


def _in_llama_cpp(place: Place, option: str = "-m") -> Usage:
    return place.in_a_shell(*(f"llama-cli {option} {quote(f'{place.folder}/{file}')}" for file in place.files))


def _beside_the_base(place: Place) -> Usage:
    return _in_llama_cpp(place, "-m BASE.gguf --lora")


def _in_ollama(place: Place) -> Usage:
    model, modelfile = quote(place.model), quote(f"{place.folder}/Modelfile")
    return place.in_a_shell(f"ollama create {model} -f {modelfile}", f"ollama run {model}")


FORMATS = {
    "safetensors": Format(
        "transformers, vLLM, TGI",
        title="Merged model",
        library="transformers",
        writer="qdpo.export.folder:write_safetensors",
        target="qdpo.export.verify.target:FolderTarget",
        usage=_in_transformers,
        options=("dtype", "rounding"),
    ),
    "gguf": Format(
        "llama.cpp",
        title="GGUF for llama.cpp",
        library="gguf",
        writer="qdpo.export.gguf.format:write_gguf",
        target="qdpo.export.verify.gguf_target:GgufTarget",
        usage=_in_llama_cpp,
        options=("quant", "pick", "rounding", "imatrix"),
    ),
    "gguf-lora": Format(
        "the adapter alone, for llama.cpp",
        title="Adapter as GGUF, beside a GGUF of the base",
        library="gguf",
        writer="qdpo.export.gguf.lora:write_gguf_lora",
        target="qdpo.export.verify.gguf_target:LoraTarget",
        usage=_beside_the_base,
        options=("quant",),
    ),
    "awq": Format(
        "4 bits, calibrated on the run's pairs: vLLM",
        title="Merged model, 4-bit AWQ",
        library="transformers",
        writer="qdpo.export.awq.format:write_awq",
        target="qdpo.export.verify.awq_target:AwqTarget",
        usage=_in_transformers,
        options=("awq_layout", "rounding"),
    ),
    "ollama": Format(
        "GGUF and Modelfile",
        title="Ollama",
        library="gguf",
        writer="qdpo.export.ollama:write_ollama",
        target="qdpo.export.verify.gguf_target:GgufTarget",
        usage=_in_ollama,
        options=("quant", "pick", "rounding", "imatrix"),
    ),
}


OPTIONS = {
    "dtype": ("is for safetensors", "choose GGUF types with --quant"),
    "quant": ("is for gguf", "choose the precision with --dtype"),
    "awq_layout": ("is for awq", None),
    "rounding": ("is for safetensors, gguf, ollama and awq", None),
    "imatrix": ("is for gguf and ollama", None),
    "pick": ("chooses among GGUF types", "use --format gguf or ollama"),
}
"""Options of `qdpo merge-export` that not every format has: what each is for, and the way out."""


def check_options(format: str, given: Mapping[str, Any]) -> None:
    """Refuse options that do not belong to the format, before anything is read.

    Args:
        format: one of `FORMATS`.
        given: option -> its value; one that is empty or false was not given.

    Raises:
        UsageError: one does not.
    """
    for option, (purpose, hint) in OPTIONS.items():
        if given[option] and option not in FORMATS[format].options:
            raise UsageError(f"--{option.replace('_', '-')} {purpose}, not for {format}", hint)


def targets_of(folder: Path, record: dict[str, Any], run: TrainedRun) -> list[Target]:
    """The artefacts of an export.

    Args:
        folder: the export.
        record: its export.json.
        run: what it was made from.

    Raises:
        InputMissingError: an unknown format.
    """
    format = FORMATS.get(str(record.get("format")))
    if format is None:
        raise InputMissingError(
            f"{folder} has format {record.get('format')!r}, which this version of qdpo cannot verify"
        )
    found: list[Target] = _load(format.target).of_export(folder, record, run)
    return found
