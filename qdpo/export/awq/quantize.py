"""Running llmcompressor's AWQ on the merged model."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qdpo.errors import InputMissingError, UnavailableError
from qdpo.export.awq.levels import choose_levels
from qdpo.export.awq.plan import Plan
from qdpo.export.feedback import Corrections
from qdpo.export.whole import merged_model, without_bars
from qdpo.model.merged import HEAD, MergedModel
from qdpo.model.tensors import is_finite

SCHEME = "W4A16_ASYM"


def require_llmcompressor() -> None:
    """Refuse early where the extra is not installed.

    Raises:
        UnavailableError: llmcompressor is missing.
    """
    if importlib.util.find_spec("llmcompressor") is None:
        raise UnavailableError(
            "--format awq needs llmcompressor, which is not installed", "install it: pip install 'qdpo[awq]'"
        )


def quantise(
    model: MergedModel,
    plan: Plan,
    ids: list[list[int]],
    folder: Path,
    scratch: Path,
    dtype: torch.dtype,
    corrections: Corrections | None,
) -> None:
    """Scale by activations, quantise, and save as compressed-tensors.

    The whole model is in memory, on the GPU where there is one.

    Args:
        model: what is quantised.
        plan: which layers, and in which groups.
        ids: sequences to calibrate with.
        folder: where the merged model's config.json lies.
        scratch: where the quantised model is written: safetensors, and a config.json with `quantization_config`.
        dtype: what the file will hold scales and gains in.
        corrections: for levels with feedback; None takes the nearest.

    Raises:
        InputMissingError: the values broke down on the way.
    """
    with _quiet():
        # llmcompressor configures its log and reads its environment when it is imported.
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier

        whole = merged_model(model)
        whole.config._name_or_path = str(folder)  # llmcompressor looks there whether the model is quantised already
        if torch.cuda.is_available():
            whole.to("cuda")
        recipe: Any = [
            # "both" tries scales from activations alone beside those that take the weights into account
            AWQModifier(duo_scaling="both", mappings=_mappings(whole, plan)),
            QuantizationModifier(config_groups={"group_0": _scheme(plan)}, ignore=[HEAD.split(".")[0], *plan.kept]),
        ]
        samples = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]})
        with _without_pinning():
            oneshot(
                model=whole,
                recipe=recipe,
                dataset=samples,
                num_calibration_samples=len(ids),
                max_seq_length=max(map(len, ids)),
                shuffle_calibration_samples=False,
            )
        bad = [name for name, value in whole.named_parameters() if not is_finite(value)]
        if bad:
            raise InputMissingError(
                f"{bad[0]} has values that are NaN or infinite after AWQ ({len(bad)} tensors in all)",
                "export gguf instead, and report the model to llmcompressor",
            )
        if corrections is not None:
            choose_levels(whole, model, plan, dtype, corrections)
        whole.save_pretrained(scratch, save_compressed=True)


def _mappings(whole: Any, plan: Plan) -> list[Any]:
    """Where llmcompressor moves scales in this architecture, but for layers that stay in 16 bits: nothing is gained."""
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import get_layer_mappings_from_model

    def stays(pattern: str) -> bool:
        return any(re.match(pattern.removeprefix("re:"), name) for name in plan.kept)

    return [one for one in get_layer_mappings_from_model(whole) if not any(map(stays, one.balance_layers))]


def _scheme(plan: Plan) -> Any:
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme

    scheme: QuantizationScheme = preset_name_to_scheme(SCHEME, ["Linear"])
    assert scheme.weights is not None
    scheme.weights.group_size = plan.group
    return scheme


@contextlib.contextmanager
def _without_pinning() -> Iterator[None]:
    """llmcompressor 0.14 pins its activations for a faster way to the accelerator, and fails where there is none."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
        return
    cache: Any = IntermediatesCache
    pin = cache.pin_memory
    cache.pin_memory = lambda self, *args, **kwargs: None
    try:
        yield
    finally:
        cache.pin_memory = pin


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log on stdout, which is for data; warnings of llmcompressor's own dependencies are not the user's."""
    os.environ.setdefault("LLM_COMPRESSOR_LOG_DISABLED", "true")
    with warnings.catch_warnings(), without_bars():
        warnings.simplefilter("ignore")
        yield
