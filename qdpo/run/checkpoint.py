"""Checkpoints: everything that a bitwise resume needs, whole or absent, and no pickle.

checkpoints/step-000050/
  adapter_model.safetensors, adapter_config.json
  optimizer.safetensors, optimizer.json    tensors; the rest of the state
  scaler.json                              of a run in float16
  progress.json                            step, counters, the best evaluation
  manifest.json

Learning rates and random numbers are no state: they follow from the settings, the seed and the step.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file

from qdpo import console
from qdpo.engine.optimizer import load_state
from qdpo.errors import DataError, TrainingError
from qdpo.files import explained, manifest_problems, staged_folder, sweep, write_json
from qdpo.model.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qdpo.model.tensors import is_finite
from qdpo.run.folder import complete_steps, step_folder

if TYPE_CHECKING:
    from peft import PeftModel

PROGRESS, SCALER = "progress.json", "scaler.json"
REQUIRED = (ADAPTER_WEIGHTS, ADAPTER_CONFIG, "optimizer.safetensors", "optimizer.json", PROGRESS)
"""What every checkpoint has; one of a run in float16 also has scaler.json."""
WAY_OUT = "look at these rows, or lower train.learning_rate or train.max_grad_norm; the last checkpoint is intact"


def newest_whole(checkpoints: Path, problems_of: Callable[[Path], list[str]] = manifest_problems) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are named and passed over.

    Args:
        checkpoints: their folder.
        problems_of: says what is wrong with one.

    Returns:
        None when there is no checkpoint at all.

    Raises:
        DataError: there are checkpoints, and none is whole.
    """
    if checkpoints.is_dir():
        sweep(checkpoints)
    steps = complete_steps(checkpoints)
    for step in reversed(steps):
        folder = step_folder(checkpoints, step)
        problems = problems_of(folder)
        if not problems:
            return folder
        console.warn(f"checkpoint {folder} is damaged and is passed over: {problems[0]}")
    if steps:
        raise DataError(
            f"none of the {len(steps)} checkpoints in {checkpoints} is whole",
            "start again in a new run directory",
        )
    return None


def whole_checkpoint(folder: Path, run_id: str | None) -> list[str]:
    """What is wrong with a checkpoint: its files, their format, or whose it is; an empty list for a whole one.

    A manifest says that files are what was written. A folder that somebody else made, or moved to another step's name,
    matches its own manifest too.

    Args:
        folder: the checkpoint.
        run_id: of the run that it must belong to; None takes any.
    """
    problems = manifest_problems(folder)
    problems += [f"{name} is missing" for name in REQUIRED if not problems and not (folder / name).is_file()]
    if problems:
        return problems
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as stream:
                    stream.keys()
            elif path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            return [f"{path.name} cannot be read: {error}"]
    progress: Any = json.loads((folder / PROGRESS).read_text("utf-8"))
    step, run = (progress.get(key) if isinstance(progress, dict) else None for key in ("step", "run"))
    if run_id is not None and run != run_id:
        return ["it is another run's"]
    if not isinstance(step, int) or folder != step_folder(folder.parent, step):
        return [f"it is of step {step}"]
    return []


def prune(checkpoints: Path, keep: int, protected: int | None) -> None:
    """Remove all but the `keep` newest checkpoints; the protected step (the best) stays."""
    for step in complete_steps(checkpoints)[:-keep]:
        if step != protected:
            shutil.rmtree(step_folder(checkpoints, step))


def check_saved(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Refuse to write values that are not finite.

    Raises:
        TrainingError: with the first name.
    """
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise TrainingError(
            f"{what} has values that are not finite in {len(broken)} of {len(tensors)} tensors (first: {broken[0]}); "
            "it is not saved",
            WAY_OUT,
        )


# ------------------------------------------------------------------------------------------------------------ adapter


def write_adapter(policy: PeftModel, folder: Path, base_name: str) -> None:
    """The adapter in PEFT's layout.

    Args:
        policy: the model with its adapter.
        folder: where the two files go.
        base_name: what adapter_config.json names as its base.

    Raises:
        TrainingError: a weight is not finite.
    """
    from peft import get_peft_model_state_dict

    config = copy.deepcopy(policy.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = base_name
    config.save_pretrained(str(folder))
    # PEFT writes a set, whose order differs from process to process; the file should not
    path = folder / ADAPTER_CONFIG
    content = json.loads(path.read_text())
    if isinstance(content.get("target_modules"), list):
        content["target_modules"] = sorted(content["target_modules"])
    write_json(path, content)
    state = get_peft_model_state_dict(policy, save_embedding_layers=False)
    weights = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    check_saved(weights, "the adapter")
    save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})


def read_adapter(policy: PeftModel, folder: Path) -> None:
    """Load adapter weights into a model that has the same adapter.

    Raises:
        DataError: names or shapes do not fit.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    state = load_file(folder / ADAPTER_WEIGHTS)
    expected = get_peft_model_state_dict(policy, save_embedding_layers=False).keys()
    # PEFT would leave a weight that is missing as it is, and pass over one that it does not know
    for names, what in ((expected - state.keys(), "is missing"), (state.keys() - expected, "is unknown")):
        if names:
            raise DataError(f"the adapter in {folder} does not fit this model: {min(names)} {what}")
    try:
        set_peft_model_state_dict(policy, state)
    except RuntimeError as error:
        raise DataError(f"the adapter in {folder} does not fit this model: {error}") from error


# ---------------------------------------------------------------------------------------------------------- optimizer


def write_optimizer(optimizer: Any, folder: Path) -> None:
    """The optimizer's state: tensors as safetensors, everything else as JSON.

    Raises:
        TrainingError: a value is not finite.
    """
    tensors, plain = _split(optimizer.state_dict())
    check_saved(tensors, "the optimizer's state")
    save_file(tensors, folder / "optimizer.safetensors")
    write_json(folder / "optimizer.json", plain)


def read_optimizer(optimizer: Any, folder: Path) -> None:
    """Load what `write_optimizer` wrote; rates, moments' decay and the like stay the optimizer's own.

    A resume may have been allowed to change these settings: only what was learned is the checkpoint's.

    Raises:
        DataError: it is another optimizer's.
    """
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    tensors = load((folder / "optimizer.safetensors").read_bytes())
    try:
        load_state(optimizer, _join(json.loads((folder / "optimizer.json").read_text()), tensors))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the optimizer's state in {folder} does not fit: {error}") from error
    for group, ours in zip(optimizer.param_groups, settings, strict=True):
        group.update(ours)


def _split(value: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Take the tensors out of nested dicts and lists; `{"tensor": name}` stands where one was.

    Keys that are not text (the optimizer's parameter numbers) become pairs, since JSON has only text keys.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(item: Any, path: str) -> Any:
        if isinstance(item, torch.Tensor):
            tensors[path] = item.detach().cpu().contiguous().clone()
            return {"tensor": path}
        if isinstance(item, dict):
            return {"items": [[key, walk(inner, f"{path}.{key}")] for key, inner in item.items()]}
        if isinstance(item, list | tuple):
            return {"list": [walk(inner, f"{path}.{i}") for i, inner in enumerate(item)]}
        return {"value": item}

    return tensors, walk(value, "state")


def _join(item: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if "tensor" in item:
        return tensors[item["tensor"]]
    if "items" in item:
        return {key: _join(inner, tensors) for key, inner in item["items"]}
    if "list" in item:
        return [_join(inner, tensors) for inner in item["list"]]
    return item["value"]


# ------------------------------------------------------------------------------------------------------ the whole of it


@dataclass
class Skips:
    """Steps that the fp16 scaler skipped because gradients overflowed.

    Attributes:
        total: in the whole run.
        in_a_row: up to now, without a step between.
    """

    total: int = 0
    in_a_row: int = 0

    def count(self, skipped: bool) -> None:
        """Count a step."""
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0


@dataclass
class Progress:
    """Where a run stands, besides weights and the optimizer's state.

    Attributes:
        step: optimizer steps done.
        tokens_seen: tokens trained on so far.
        skips: steps that the fp16 scaler skipped.
        best_step: of the best evaluation so far, by `train.load_best`; None for none.
        best_value: what it was.
    """

    step: int = 0
    tokens_seen: int = 0
    skips: Skips = field(default_factory=Skips)
    best_step: int | None = None
    best_value: float | None = None


def save(
    checkpoints: Path,
    progress: Progress,
    policy: PeftModel,
    optimizer: Any,
    scaler: Any,
    *,
    run_id: str,
    base_name: str,
    keep: int,
    needed: int,
) -> None:
    """Write the checkpoint of a step, and remove those that are not kept.

    Args:
        checkpoints: their folder.
        progress: where the run stands.
        policy: the model with its adapter.
        optimizer: its state is written.
        scaler: of the loss in float16, else None.
        run_id: of the run, which every checkpoint names.
        base_name: what the adapter names as its base.
        keep: newest checkpoints to keep; the best evaluation's stays besides.
        needed: bytes that it will take at the most.

    Raises:
        TrainingError: a value is not finite.
        DiskError: there is no room.
    """
    with staged_folder(step_folder(checkpoints, progress.step), replace=True, needed=needed) as staging:
        write_adapter(policy, staging, base_name)
        write_optimizer(optimizer, staging)
        if scaler is not None:
            write_json(staging / SCALER, scaler.state_dict())
        write_json(staging / PROGRESS, {"run": run_id, **asdict(progress)})
    with explained(checkpoints):
        prune(checkpoints, keep, progress.best_step)


def read_progress(folder: Path) -> Progress:
    """Where the run stood.

    Raises:
        DataError: the file is of another version.
    """
    try:
        found = json.loads((folder / PROGRESS).read_text("utf-8"))
        found.pop("run")
        return Progress(**found | {"skips": Skips(**found["skips"])})
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{folder / PROGRESS} cannot be read: {error}", "train again with this version") from error


def read_scaler(scaler: Any, folder: Path) -> None:
    """Load the scaler's state where there is a scaler."""
    if scaler is not None:
        scaler.load_state_dict(json.loads((folder / SCALER).read_text("utf-8")))
