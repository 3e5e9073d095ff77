"""`--format gguf`: a folder with one GGUF file per type that was asked for."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from qdpo.console import good, note
from qdpo.data.template import end_of_turn
from qdpo.errors import ConfigError, DataError, UsageError
from qdpo.export.feedback import note_nearest
from qdpo.export.folder import generation_config
from qdpo.export.formats import Request
from qdpo.export.gguf.convert import METADATA_BYTES, GgufFile, mapped_tensors, tensor_bytes
from qdpo.export.gguf.families import family_of
from qdpo.export.gguf.general import General, base_model, sampling
from qdpo.export.gguf.kinds import KINDS, PLAIN, Kind
from qdpo.export.gguf.rounding import Rounding, rounding_of
from qdpo.export.gguf.settings import warn_of_window
from qdpo.export.gguf.vocabulary import Vocabulary, read_vocabulary
from qdpo.export.output import export_folder, kept_files, link_or_copy
from qdpo.export.source import TrainedRun
from qdpo.model.merged import EMBEDDING, MergedModel
from qdpo.progress import Progress

DEFAULT_QUANT = "q4_k_m"


def write_gguf(request: Request) -> Path:
    """Convert a run to GGUF.

    Raises:
        UsageError: an unknown type.
        InputMissingError: the model or its tokenizer has no equal in llama.cpp.
        DiskError, OutputError: the export cannot be written.
    """
    batch = plan_batch(request)
    record = request.record("gguf", files=batch.files, rounding=batch.rounding.record())
    kept = kept_files(request.out, record)
    record["files"] = kept | batch.files
    with export_folder(request.out, batch.needed, record) as folder:
        batch.write(folder)
        for name in kept:
            link_or_copy(request.out / name, folder / name)
    if kept:
        note(f"{', '.join(kept)} of the earlier export stays")
    return request.out


@dataclass(frozen=True)
class Batch:
    """GGUF files that are about to be written in one pass.

    Attributes:
        files: file name -> type.
        needed: bytes of disk.
        rounding: how tensors are rounded.
        ready: a folder that may hold some of the files already.
    """

    files: dict[str, str]
    needed: int
    model: MergedModel
    vocabulary: Vocabulary
    general: General
    rounding: Rounding
    ready: Path | None

    def write(self, folder: Path) -> None:
        """Write the files into a folder; what is ready is linked."""
        files = []
        for name, quant in self.files.items():
            if self.ready and (self.ready / name).is_file():
                link_or_copy(self.ready / name, folder / name)
            else:
                files.append(
                    GgufFile(folder / name, KINDS[quant], self.model, self.vocabulary, self.general, self.rounding)
                )
        if not files:
            return
        tensors = mapped_tensors(family_of(self.model.config), self.model)
        weights = sum(math.prod(tensor.shape) for tensor in tensors)
        with Progress(f"writing {', '.join(file.kind.name for file in files)}", weights * 2) as progress:
            for file in files:
                file.begin()
            for tensor in tensors:
                values = self.model.read(tensor.name)  # merged once, encoded for each file
                for file in files:
                    file.add(tensor, values)
                del values  # else it would live beside the next one while that is merged
                progress.advance(math.prod(tensor.shape) * 2)
        for file in files:
            file.finish()
            good(f"{file.path.name}: {file.path.stat().st_size:,} bytes")
        good(f"{weights:,} weights in {progress.seconds:.0f} s ({weights / progress.seconds / 1e6:.1f} M a second)")


def plan_batch(request: Request) -> Batch:
    """Read and check everything that can be checked before the first byte is written."""
    kinds = chosen_kinds(request.quants)
    model = request.run.merged(request.merge_base)
    warn_of_window(family_of(model.config), model.config)
    rounding = rounding_of(request.run, model, request.rounding, request.imatrix)
    rounds = any(kind.type not in PLAIN and rounding.of_file(kind).grids is None for _, kind in kinds)
    if request.rounding is None and rounding.moments is None and rounds:
        note_nearest()
    return Batch(
        files={file_name(request.run, kind): quant for quant, kind in kinds},
        needed=sum(
            tensor_bytes(kind, model, rounding.of_file(kind).has_importance) + METADATA_BYTES for _, kind in kinds
        ),
        model=model,
        vocabulary=vocabulary_of(request.run, model),
        general=general_of(request),
        rounding=rounding,
        ready=request.ready,
    )


def chosen_kinds(quants: tuple[str, ...]) -> list[tuple[str, Kind]]:
    """The types by name, in the order given, each once."""
    wanted = list(dict.fromkeys(quant.lower() for quant in quants or (DEFAULT_QUANT,)))
    if unknown := [quant for quant in wanted if quant not in KINDS]:
        raise UsageError(f"--quant {','.join(unknown)} is not known", f"known are {', '.join(KINDS)}")
    return [(quant, KINDS[quant]) for quant in wanted]


def file_name(run: TrainedRun, kind: Kind) -> str:
    """As llama.cpp names files: NAME-Q4_K_M.gguf."""
    return f"{run.name}-{kind.name}.gguf"


def vocabulary_of(run: TrainedRun, model: MergedModel) -> Vocabulary:
    """The run's tokenizer, for the rows of the merged embedding.

    A tokenizer's class may do otherwise than its tokenizer.json says (Llama's puts spaces by settings of its own); what
    transformers saves of it is what it does. A lone tokenizer.model says all itself.
    """
    files = run.tokenizer_files()[0].parent
    rows, settings = model.shape(EMBEDDING)[0], generation_config(run, model.config)
    if not (files / "tokenizer.json").is_file():
        return read_vocabulary(files, rows, model.config, settings)
    tokenizer = AutoTokenizer.from_pretrained(files)
    end = None
    with contextlib.suppress(ConfigError, DataError):  # no template, or one that only the training's messages suit
        end = end_of_turn(tokenizer)
    with tempfile.TemporaryDirectory(prefix="qdpo-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        return read_vocabulary(Path(folder), rows, model.config, settings, end)


def general_of(request: Request) -> General:
    """`general.*` entries: what the file is, what it was made from, and how its base is sampled."""
    run = request.run
    license = run.record["base"].get("license")
    adapter = json.dumps({"adapter_sha256": run.adapter_sha256})
    about: General = {
        "name": (run.name,),
        "description": (f"DPO of {run.public_base} by qdpo, merged into the {request.merge_base} base {adapter}",),
        **base_model(run),
        **sampling(run.base),
    }
    return about | ({"license": (license,)} if license else {})
