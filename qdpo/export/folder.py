"""The merged model as a folder that transformers and vLLM load: safetensors, configs, tokenizer, template."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from qdpo.console import good, note
from qdpo.errors import InputMissingError
from qdpo.export.feedback import Corrections, corrections_of, round_floats, way_of
from qdpo.export.formats import Request
from qdpo.export.output import export_folder
from qdpo.export.source import TrainedRun
from qdpo.files import read_json, write_json
from qdpo.model.merged import MergedModel
from qdpo.model.tensors import PlannedTensor, is_finite, write_folder
from qdpo.progress import Progress

KINDS = {
    "trained": "the dequantised 4-bit base that the adapter was trained on",
    "original": "the original base, which is not the one that was trained on (expect a small difference)",
}


def write_safetensors(request: Request) -> Path:
    """Merge a run and write it as safetensors.

    Raises:
        InputMissingError: base and adapter cannot be merged, or a value does not fit the dtype.
        DiskError, OutputError: the export cannot be written.
    """
    model = request.run.merged(request.merge_base)
    plan = [PlannedTensor(n, _stored_as(model, n, request.dtype), model.shape(n)) for n in model.names]
    dtypes = {tensor.name: tensor.dtype for tensor in plan}
    total = sum(tensor.nbytes for tensor in plan)

    corrections = corrections_of(request.run, request.rounding)

    def read(name: str) -> torch.Tensor:
        return rounded(name, model.read(name), dtypes[name], corrections)

    rounding = {"way": way_of(corrections)}
    details = {"dtype": _main_dtype(plan), "tensors": len(plan), "weight_bytes": total, "rounding": rounding}
    record = request.record("safetensors", **details)
    with export_folder(request.out, total, record) as folder:
        with Progress("merging", total) as progress:
            write_folder(folder, plan, read, written=progress.advance)
        write_companions(request.run, model, folder, _main_dtype(plan))
    good(f"merged {len(plan)} tensors ({total:,} bytes, {_main_dtype(plan)}) into {KINDS[request.merge_base]}")
    return request.out


def rounded(
    name: str,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    corrections: Corrections | None = None,
    hint: str = "use --dtype float32",
) -> torch.Tensor:
    """Round a merged tensor to the dtype that is stored: the one rounding of an export.

    Args:
        name: the tensor, for the message.
        tensor: finite values.
        dtype: what they become.
        corrections: for rounding with feedback; None takes the nearest value.
        hint: the way out when they do not fit.

    Raises:
        InputMissingError: finite values became infinite.
    """
    halved = dtype in (torch.float16, torch.bfloat16)
    feedback = corrections.of(name) if corrections and halved and tensor.ndim == 2 else None
    stored = tensor.to(dtype) if feedback is None else round_floats(tensor, feedback, dtype)
    if halved and not is_finite(stored):
        kind = str(dtype).removeprefix("torch.")
        raise InputMissingError(
            f"{name} has values up to {tensor.abs().max().item():.6g}, {kind} ends at {torch.finfo(dtype).max:.6g}",
            hint,
        )
    return stored


def _stored_as(model: MergedModel, name: str, dtype: str | None) -> torch.dtype:
    stored = model.stored_dtype(name)
    return getattr(torch, dtype) if dtype and stored.is_floating_point else stored


def _main_dtype(plan: list[PlannedTensor]) -> str:
    """The dtype of most of the bytes, by its torch name."""
    totals: dict[torch.dtype, int] = {}
    for tensor in plan:
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
    return str(max(totals, key=lambda dtype: totals[dtype])).removeprefix("torch.")


def write_companions(run: TrainedRun, model: MergedModel, folder: Path, dtype: str) -> None:
    """Write everything of a model folder but the weights: configs, tokenizer, chat template."""
    config = {key: value for key, value in model.config.items() if key != "torch_dtype"}
    write_json(folder / "config.json", {**config, "dtype": dtype})
    files = run.tokenizer_files()
    for path in files:
        shutil.copyfile(path, folder / path.name)
    check_vocabulary(folder, model)
    write_json(folder / "generation_config.json", generation_config(run, model.config))


def check_vocabulary(folder: Path, model: MergedModel) -> None:
    """Refuse a tokenizer that can give ids for which the model has no embedding."""
    if not (folder / "tokenizer.json").is_file():
        return
    tokenizer = read_json(folder / "tokenizer.json")
    vocab = tokenizer["model"].get("vocab", {})
    ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    check_rows(max(ids + [token["id"] for token in tokenizer.get("added_tokens", [])]), model.config["vocab_size"])


def check_rows(top: int, rows: int) -> None:
    """Refuse a tokenizer whose largest id has no row in the embedding."""
    if top >= rows:
        raise InputMissingError(
            f"the tokenizer has ids up to {top}, the embedding only {rows} rows",
            "tokens were added without resizing the model; train with the base's own tokenizer",
        )


def generation_config(run: TrainedRun, config: dict[str, Any]) -> dict[str, Any]:
    """The base's generation settings, with the end-of-turn token of the training among those that stop."""
    path = run.base / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if settings.get(key) is None and config.get(key) is not None:
            settings[key] = config[key]
    trained = run.record.get("tokenizer", {}).get("eos_token_id")
    stops = settings.get("eos_token_id")
    known = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if trained is not None and trained not in known:
        settings["eos_token_id"] = [trained, *known] if known else trained
        note(f"generation stops at token {trained}, which ended the completions in training, besides {known}")
    return settings
