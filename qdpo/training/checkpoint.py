"""Checkpoints: everything that a bitwise resume needs, whole or absent, and no pickle.

checkpoints/step-000050/
  adapter_model.safetensors, adapter_config.json
  optimizer.safetensors, optimizer.json    tensors; the rest of the state
  scheduler.json, scaler.json
  rng.safetensors, rng.json                torch's generators; Python's and NumPy's
  trainer_state.json, progress.json        transformers' counters; ours
  manifest.json
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file

from qdpo import console
from qdpo.errors import DataError
from qdpo.files import manifest_problems, sweep, write_json
from qdpo.run.folder import complete_steps, step_folder
from qdpo.training.guards import check_saved
from qdpo.training.optimizer import load_state

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINER_STATE = "trainer_state.json"
PROGRESS = "progress.json"
REQUIRED = (
    ADAPTER_WEIGHTS,
    "adapter_config.json",
    "optimizer.safetensors",
    "optimizer.json",
    "scheduler.json",
    "rng.safetensors",
    "rng.json",
    TRAINER_STATE,
    PROGRESS,
)
"""What every checkpoint has; one of a run in float16 also has scaler.json."""


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
    progress: Any = read_progress(folder)
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
    path = folder / "adapter_config.json"
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
    """Load what `write_optimizer` wrote."""
    tensors = load((folder / "optimizer.safetensors").read_bytes())
    load_state(optimizer, _join(json.loads((folder / "optimizer.json").read_text()), tensors))


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


# ----------------------------------------------------------------------------------------------------------- progress


def write_progress(folder: Path, progress: dict[str, Any]) -> None:
    """What transformers does not count, and which run and step this is."""
    write_json(folder / PROGRESS, progress)


def read_progress(folder: Path) -> dict[str, Any]:
    """What `write_progress` wrote."""
    return json.loads((folder / PROGRESS).read_text())


# ------------------------------------------------------------------------------------------------------ random numbers


def write_rng(folder: Path) -> None:
    """The states of all random number generators that training uses."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    tensors["numpy"] = torch.from_numpy(legacy[1].astype(np.int64))
    save_file(tensors, folder / "rng.safetensors")
    write_json(
        folder / "rng.json",
        {
            "python": [version, list(words), gauss],
            "numpy": [legacy[0], int(legacy[2]), int(legacy[3]), float(legacy[4])],
        },
    )


def read_rng(folder: Path) -> None:
    """Load what `write_rng` wrote."""
    tensors = load((folder / "rng.safetensors").read_bytes())
    states = json.loads((folder / "rng.json").read_text())
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["cpu"])
    if torch.cuda.is_available() and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"])
