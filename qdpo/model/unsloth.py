"""`backend: unsloth`: the base and its adapter by unsloth's FastLanguageModel, everything after that as ever.

unsloth replaces parts of transformers, PEFT and TRL when it is imported, for the whole process and for good. It is
therefore imported when it was chosen, before any of them, and in no other case. Its own export is never called.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.errors import ConfigError, UnavailableError, first_line
from qdpo.hardware import Device, choose_dtype
from qdpo.model.source import find
from qdpo.paths import cache_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from qdpo.model.load import Base

PATCHED = ("transformers", "trl", "peft")
"""What unsloth must be imported before."""

INSTALL = "pip install 'qdpo[unsloth]', or set backend: hf"

QUIET = {
    # a download from the hub that counts how often unsloth is used
    "UNSLOTH_DISABLE_STATISTICS": "1",
    # compilers and converters that it would install on its own
    "UNSLOTH_AUTO_INSTALL": "0",
    "UNSLOTH_DISABLE_LLM_COMPRESSOR_AUTOINSTALL": "1",
    "UNSLOTH_PREWARM_HUB_CACHE": "0",
}
"""Switches off what unsloth would fetch while it runs."""


def check(config: RunConfig) -> None:
    """Whether unsloth is installed and can do what is asked; imports nothing.

    Raises:
        UnavailableError: it is not installed.
        ConfigError: it would ignore a setting, or cannot do it.
    """
    if importlib.util.find_spec("unsloth") is None:
        raise UnavailableError("backend: unsloth: unsloth is not installed", INSTALL)
    if config.model.adapter is not None:
        raise ConfigError(
            "backend: unsloth starts a new adapter, and model.adapter names one to continue from", "set backend: hf"
        )
    if config.model.quantization == "nf4" and not config.model.double_quant:
        raise ConfigError(
            "model.double_quant is false, which unsloth ignores: it always quantizes the scales too",
            "set model.double_quant to true, or backend: hf",
        )


def start(config: RunConfig) -> None:
    """Import unsloth, first of all libraries that it changes.

    Raises:
        UnavailableError: it is not installed, cannot run here, or comes too late.
        ConfigError: see `check`.
    """
    check(config)
    early = [name for name in PATCHED if name in sys.modules]
    if early and "unsloth" not in sys.modules:
        raise UnavailableError(
            f"backend: unsloth must be imported before {early[0]}, which this process has imported already",
            "start `qdpo train` in a process of its own",
        )
    os.environ.update(QUIET)
    # source that it writes and imports; by default it lands in the current folder
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder("unsloth")))
    console.note(f"backend: unsloth {installed_version()}; importing it takes a while")
    try:
        with talking_to_stderr():
            importlib.import_module("unsloth")
    except Exception as error:  # whatever it does not find: a GPU, a library, a version
        raise UnavailableError(
            f"backend: unsloth {installed_version()} cannot be imported here: {first_line(error)}",
            f"on a machine with a GPU: {INSTALL}; for a CPU, docs/backends.md says which version",
        ) from error
    import torch

    if not torch.cuda.is_available():
        console.note("no GPU: on a CPU unsloth is stock transformers, PEFT and TRL, and makes nothing faster")


def installed_version() -> str:
    """unsloth's version, as installed."""
    try:
        return importlib.metadata.version("unsloth")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def load_base(config: RunConfig, device: Device) -> Base:
    """The base by unsloth, frozen, its linear layers in NF4 if configured.

    It gets a local folder and keeps to it: for some hub names it would take a copy that unsloth has quantized.

    Raises:
        DataError: files are missing, broken, or hold no causal language model.
        ConfigError: the model is quantized already.
        UnavailableError: unsloth has loaded 16-bit weights instead of 4-bit ones.
    """
    from unsloth import FastLanguageModel

    from qdpo.model.load import explained_load, frozen, refuse_quantized

    settings = config.model
    source = find(settings.name, settings.revision)
    dtype, reason = choose_dtype(settings.dtype, device)
    refuse_quantized(source)
    with explained_load(source), talking_to_stderr():
        model, _ = FastLanguageModel.from_pretrained(
            str(source.folder),
            max_seq_length=config.data.max_length,
            dtype=dtype,
            load_in_4bit=settings.quantization == "nf4",
            load_in_16bit=settings.quantization == "none",
            device_map={"": device.torch},
            attn_implementation=settings.attn_implementation,
            trust_remote_code=settings.trust_remote_code,
            use_gradient_checkpointing=checkpointing(config),
            random_state=config.train.seed,
            use_safetensors=True,
            use_exact_model_name=True,
            local_files_only=True,
        )
    base = frozen(model, source, dtype, reason)
    if settings.quantization == "nf4" and not base.quantized:
        raise UnavailableError(f"unsloth has loaded {source.name} without quantizing it", "set backend: hf")
    return base


def attach(model: PreTrainedModel, config: RunConfig) -> PeftModel:
    """A new adapter by unsloth around a base that it has loaded; fp32, as `qdpo.model.lora.attach` has it.

    Raises:
        ConfigError: a target is not in the model, or is the head.
    """
    from unsloth import FastLanguageModel

    from qdpo.model.lora import trainable
    from qdpo.model.targets import check_left_out, targets_of

    lora = config.lora
    targets = targets_of(model, lora.target_modules)
    with talking_to_stderr():
        policy: Any = FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            target_modules=targets,
            lora_alpha=lora.lora_alpha,
            # its fast layers look at the configured value, which is put back below
            lora_dropout=0.0 if config.train.disable_dropout else lora.lora_dropout,
            bias=lora.bias,
            use_gradient_checkpointing=checkpointing(config),
            random_state=config.train.seed,
            use_rslora=lora.use_rslora,
        )
    check_left_out(policy, lora.leave_out)
    policy.peft_config["default"].lora_dropout = lora.lora_dropout
    for parameter in trainable(policy).values():
        parameter.data = parameter.data.float()
    return policy


def checkpointing(config: RunConfig) -> str | bool:
    """unsloth's offloaded checkpointing under TRL's engine; the packed engine chooses its layers itself."""
    return "unsloth" if config.train.gradient_checkpointing and config.engine == "trl" else False


@contextlib.contextmanager
def talking_to_stderr() -> Iterator[None]:
    """unsloth prints its remarks on stdout, which is for data."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
