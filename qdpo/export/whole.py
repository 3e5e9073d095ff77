"""The merged model in memory, as transformers runs it."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from qdpo.console import is_interactive, note
from qdpo.errors import InputMissingError, MemoryShortageError
from qdpo.hardware import GIB, available_memory
from qdpo.model.merged import MergedModel
from qdpo.model.skeleton import skeleton


def model_with(config: dict[str, Any], state: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Any:
    """A transformers model filled with given weights.

    Args:
        config: contents of config.json.
        state: names and float32 values; a tied head may be left out.
        dtype: what the model computes in.

    Raises:
        InputMissingError: weights are missing.
    """
    model = skeleton(config, dtype)
    model.load_state_dict({name: value.to(dtype) for name, value in state}, strict=False, assign=True)
    model.tie_weights()
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise InputMissingError(f"{len(empty)} weights are missing (first: {empty[0]})")
    return model


def computing_dtype() -> torch.dtype:
    """What torch computes in: float32 on a CPU; 16 bits on a GPU, where a large model would not fit otherwise.

    bfloat16 exists from compute capability 8.0; before, it is emulated, and float16 is taken.
    """
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def merged_model(model: MergedModel) -> Any:
    """The merged weights before any rounding to an export's precision, ready to compute."""
    return model_with(model.config, ((name, model.read(name)) for name in model.names), computing_dtype())


def require_whole(model: MergedModel) -> None:
    """Say how much memory the whole model takes; it must be there.

    Raises:
        MemoryShortageError: it is not.
    """
    needed = sum(math.prod(model.shape(name)) for name in model.names) * computing_dtype().itemsize
    place = "of memory, and as much on the card" if torch.cuda.is_available() else "of memory"
    note(f"the whole merged model is held: {needed / GIB:.1f} GiB {place}, and more for what passes through it")
    free = available_memory()
    if torch.cuda.is_available():
        free = min(free, torch.cuda.mem_get_info()[0])
    if free < needed:
        raise MemoryShortageError(
            f"the whole merged model needs {needed / GIB:.1f} GiB {place}, {free / GIB:.1f} GiB are free",
            "export gguf or safetensors, which hold one tensor at a time, or use a machine with more memory",
        )


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Bars of llmcompressor and compressed-tensors, which cannot be switched off, are drawn on a terminal only."""
    if is_interactive():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield
