"""`--format awq`: a model folder with 4-bit weights, for vLLM and other engines."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qdpo.console import good, note, say
from qdpo.export.awq.levels import TOO_LARGE
from qdpo.export.awq.packing import AUTOAWQ_PARTS, COMPRESSED_PARTS, PER_WORD, from_compressed, to_autoawq
from qdpo.export.awq.plan import Plan, plan_layers
from qdpo.export.awq.quantize import quantise, require_llmcompressor
from qdpo.export.feedback import corrections_of, note_nearest, way_of
from qdpo.export.folder import rounded, write_companions
from qdpo.export.formats import Layout, Request
from qdpo.export.output import export_folder
from qdpo.export.pairs import calibration_ids
from qdpo.export.whole import require_whole
from qdpo.files import read_json, write_json
from qdpo.model.merged import HEAD, MergedModel
from qdpo.model.tensors import SHARD_BYTES, PlannedTensor, TensorFiles, write_folder

SCRATCH = ".llmcompressor"


def write_awq(request: Request) -> Path:
    """Merge a run, quantise it with AWQ, and write it in the layout that was asked for.

    Raises:
        UnavailableError: llmcompressor is not installed.
        InputMissingError: base and adapter cannot be merged, or the model cannot be quantised.
        DataError: the run's pairs, which AWQ is calibrated with, cannot be read.
        DiskError, OutputError: the export cannot be written.
    """
    require_llmcompressor()
    model = request.run.merged(request.merge_base)
    plan = plan_layers(model, request.awq_layout)
    corrections = corrections_of(request.run, request.rounding)
    if request.rounding is None and corrections is None:
        note_nearest()
    dtype = stored_dtype(model, plan.layout)
    tensors = list(planned_tensors(model, plan, dtype))
    total = sum(tensor.nbytes for tensor in tensors)
    ids = calibration_ids(request.run)
    tokens = sum(map(len, ids))
    record = request.record(
        "awq",
        layout=plan.layout,
        group_size=plan.group,
        layers=len(plan.layers),
        kept_in_16_bits=list(plan.kept),
        dtype=str(dtype).removeprefix("torch."),
        calibration={"pairs": len(ids), "tokens": tokens},
        weight_bytes=total,
        rounding={"way": way_of(corrections)},
    )
    say(f"AWQ: {len(plan.layers)} layers in groups of {plan.group}, calibrated on {len(ids)} pairs ({tokens:,} tokens)")
    require_whole(model)
    if not torch.cuda.is_available():
        note("there is no GPU: AWQ tries 20 scales for every layer on the CPU, which is for small models")
    began = time.monotonic()
    # llmcompressor's own files lie beside the final ones for a while.
    with export_folder(request.out, 2 * total, record) as folder:
        write_companions(request.run, model, folder, str(dtype).removeprefix("torch."))
        scratch = folder / SCRATCH
        quantise(model, plan, ids, folder, scratch, dtype, corrections)
        write_layers(scratch, folder, tensors, plan, dtype)
        shutil.rmtree(scratch)
    good(f"{len(tensors)} tensors ({total:,} bytes, {plan.layout}) in {time.monotonic() - began:.0f} s")
    return request.out


def stored_dtype(model: MergedModel, layout: Layout) -> torch.dtype:
    """The dtype of everything that is not in 4 bits: AutoAWQ's kernels take float16, else the base's own 16 bits."""
    if layout == "autoawq":
        return torch.float16
    sizes: dict[torch.dtype, int] = {}
    for name in model.names:
        sizes[model.stored_dtype(name)] = sizes.get(model.stored_dtype(name), 0) + math.prod(model.shape(name))
    main = max(sizes, key=lambda dtype: sizes[dtype])
    return main if main in (torch.float16, torch.bfloat16) else torch.bfloat16


def planned_tensors(model: MergedModel, plan: Plan, dtype: torch.dtype) -> Iterator[PlannedTensor]:
    """All tensors of the export, in the model's order."""
    layers = set(plan.layers)
    for name in model.names:
        layer = name.removesuffix(".weight")
        if layer not in layers:
            yield PlannedTensor(name, dtype if model.is_float(name) else model.stored_dtype(name), model.shape(name))
            continue
        rows, columns = model.shape(name)
        groups = columns // plan.group
        word_rows, word_columns = math.ceil(rows / PER_WORD), math.ceil(columns / PER_WORD)
        kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = (
            {
                "qweight": (torch.int32, (columns, word_rows)),
                "qzeros": (torch.int32, (groups, word_rows)),
                "scales": (dtype, (groups, rows)),
            }
            if plan.layout == "autoawq"
            else {
                "weight_packed": (torch.int32, (rows, word_columns)),
                "weight_scale": (dtype, (rows, groups)),
                "weight_zero_point": (torch.int32, (word_rows, groups)),
                "weight_shape": (torch.int64, (2,)),
            }
        )
        for part, (kind, shape) in kinds.items():
            yield PlannedTensor(f"{layer}.{part}", kind, shape)


def write_layers(
    scratch: Path,
    folder: Path,
    tensors: list[PlannedTensor],
    plan: Plan,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write what llmcompressor made in the layout and dtype of the plan, tensor by tensor, and say so in config.json.

    Args:
        scratch: llmcompressor's folder, sharded or not.
        folder: where the weights go; holds a config.json without `quantization_config`.
        tensors: what is written.
        plan: layers, group and layout.
        dtype: of what is not packed.
        shard_bytes: as in `write_folder`.
    """
    made = TensorFiles.of_folder(scratch)

    def read(name: str) -> torch.Tensor:
        layer, _, part = name.rpartition(".")
        if part in AUTOAWQ_PARTS and layer in plan.layers:
            stored = {kind: made.read(f"{layer}.{kind}") for kind in COMPRESSED_PARTS}
            rounded(f"{layer}.weight_scale", stored["weight_scale"], dtype, hint=TOO_LARGE)
            return to_autoawq(from_compressed(stored))[part]
        values = made.read(name)
        return rounded(name, values, dtype, hint=TOO_LARGE) if values.dtype.is_floating_point else values

    write_folder(folder, tensors, read, shard_bytes=shard_bytes)
    made_config = read_json(scratch / "config.json")["quantization_config"]
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "quantization_config": quantization_config(plan, made_config)})


def quantization_config(plan: Plan, made: dict[str, Any]) -> dict[str, Any]:
    """What engines read to know how the weights are stored.

    Args:
        plan: layers, group and layout.
        made: llmcompressor's own entry, which is compressed-tensors'.
    """
    if plan.layout == "compressed-tensors":
        return made
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": plan.group,
        "zero_point": True,
        "modules_to_not_convert": [HEAD.removesuffix(".weight"), *plan.kept],
    }
