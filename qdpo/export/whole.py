"""The merged model in memory, as transformers runs it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from qdpo.console import is_interactive
from qdpo.errors import InputMissingError
from qdpo.export.merged import MergedModel


def model_with(config: dict[str, Any], state: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Any:
    """A transformers model filled with given weights.

    Args:
        config: contents of config.json.
        state: names and float32 values; a tied head may be left out.
        dtype: what the model computes in.

    Raises:
        InputMissingError: weights are missing.
    """
    settings = {
        key: value
        for key, value in config.items()
        if key not in ("dtype", "torch_dtype", "transformers_version", "quantization_config")
    }
    prepared = AutoConfig.for_model(**settings)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(prepared, dtype=dtype)
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


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Bars of llmcompressor and compressed-tensors, which cannot be switched off, are drawn on a terminal only."""
    if is_interactive():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield
