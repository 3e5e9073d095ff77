"""Loading the base in 4 bits, and the tokenizer beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from qdpo import console
from qdpo.config.schema import ModelSection
from qdpo.errors import ConfigError, DataError, MemoryShortageError, QdpoError, first_line
from qdpo.hardware import Device, choose_dtype, is_out_of_memory
from qdpo.model.blueprint import blueprint
from qdpo.model.coverage import check_stored
from qdpo.model.one_pass import rounded_in_memory
from qdpo.model.source import Source, find
from qdpo.model.stored_base import find_or_make
from qdpo.model.weights import check_files
from qdpo.progress import waiting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NF4_BLOCKSIZE = 64


@dataclass(frozen=True)
class Base:
    """A loaded base model, frozen.

    Attributes:
        model: the *ForCausalLM.
        source: where its files lie.
        dtype: compute type.
        dtype_reason: why this one.
        quantized: names of the linear layers that are in 4 bits.
        load_dtype: type that the weights had when they were quantized.
        weights_sha256: hash of its files, where loading has found it out.
    """

    model: PreTrainedModel
    source: Source
    dtype: torch.dtype
    dtype_reason: str
    quantized: list[str]
    load_dtype: torch.dtype
    weights_sha256: str | None = None


def load_tokenizer(config: ModelSection) -> PreTrainedTokenizerBase:
    """The base's tokenizer, or the one that model.tokenizer names.

    Raises:
        DataError: its files cannot be read.
    """
    from transformers import AutoTokenizer

    source = tokenizer_source(config)
    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"the tokenizer of {source.name} cannot be read: {first_line(error)}") from error
    except Exception as error:  # tokenizers raises a bare Exception for a broken tokenizer.json
        raise DataError(f"the tokenizer of {source.name} is broken: {first_line(error)}") from error


def tokenizer_source(config: ModelSection) -> Source:
    """Where the tokenizer's files lie: with the base, or where model.tokenizer says.

    Raises:
        InputMissingError, UnavailableError: they are not there, or cannot be had.
    """
    if config.tokenizer is not None:
        return find(config.tokenizer)
    return find(config.name, config.revision, code=config.trust_remote_code)


def load_base(config: ModelSection, device: Device) -> Base:
    """The base model on its device, frozen, its linear layers in NF4 if configured.

    Raises:
        DataError: files are missing, broken, or hold no causal language model.
        ConfigError: the model needs remote code, or is quantized already.
    """
    source = find(config.name, config.revision, code=config.trust_remote_code)
    dtype, reason = choose_dtype(config.dtype, device, source.weight_bytes)
    refuse_quantized(source)
    check_code(source, config)
    check_files(source)
    with explained_load(source):
        if (plan := blueprint(source, config, dtype, NF4_BLOCKSIZE)) is not None:
            kept = find_or_make(plan, config.nf4_cache, device.torch)
            if kept is not None:
                return frozen(plan.assemble(kept.packed, device), source, dtype, reason, kept.weights_sha256)
            if device.kind == "cpu" and (held := rounded_in_memory(plan)) is not None:
                return frozen(plan.assemble(held[0], device), source, dtype, reason, held[1])
        model = load_by_transformers(source, config, dtype, device)
    return frozen(model, source, dtype, reason)


def load_by_transformers(source: Source, config: ModelSection, dtype: torch.dtype, device: Device) -> PreTrainedModel:
    """A model of any kind, by transformers' own loader.

    Raises:
        DataError: tensors are missing.
        ConfigError: much of it would not be in 4 bits.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings: dict[str, Any] = {}
    if config.quantization == "nf4":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=config.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
    with waiting("loading the base"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=dtype,
            device_map={"": device.torch},
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        # transformers would go on with random numbers in their place
        raise DataError(
            f"the weights of {source.name} lack {len(missing)} tensors (first: {missing[0]})",
            "get the files again, or give the folder of a model whose config.json fits its weights",
        )
    if config.quantization == "nf4":
        check_stored(model, source.name, config.in_16_bits)
    result: PreTrainedModel = model
    return result


def frozen(model: PreTrainedModel, source: Source, dtype: torch.dtype, reason: str, weights: str | None = None) -> Base:
    """A model that has just been loaded, as the base of a run: nothing of it is trained, or changed by a library."""
    keep_weights_unpacked(model)
    model.requires_grad_(False)
    model.config.use_cache = False
    return Base(model, source, dtype, reason, quantized_layers(model), dtype, weights)


@contextlib.contextmanager
def explained_load(source: Source) -> Iterator[None]:
    """Failures to load a model, as ours.

    Raises:
        DataError: files are missing, broken, or hold no causal language model.
    """
    try:
        yield
    except QdpoError:
        raise
    except (MemoryError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise MemoryShortageError(
                f"out of memory while loading the base model {source.name}",
                "try --set model.quantization=nf4, or a smaller base with --model",
            ) from error
        raise DataError(f"the base model {source.name} cannot be loaded: {first_line(error)}") from error
    except Exception as error:
        # safetensors raises its own SafetensorError, a bare subclass of Exception, for a broken file
        raise DataError(f"the weights of {source.name} are broken: {first_line(error)}") from error


def check_code(source: Source, config: ModelSection) -> None:
    """Python code that comes with a model is run for a hub model at a commit only, and where the user asks for it.

    Raises:
        ConfigError: the model needs its code and may not run it, or it lies in a local folder.
    """
    from transformers import CONFIG_MAPPING

    if config.trust_remote_code and source.revision is None:
        raise ConfigError(
            f"{source.name} is a local folder: model.trust_remote_code is for a hub model at a 40-hex commit",
            "a folder has no commit that says which code was read; leave trust_remote_code out",
        )
    settings = read_config(source)
    if "auto_map" not in settings or config.trust_remote_code:
        return
    if settings.get("model_type") not in CONFIG_MAPPING:
        raise ConfigError(
            f"{source.name} brings its own Python code (auto_map in its config.json), which is not run",
            "take a base that transformers knows; or read the code, then give --trust-remote-code and "
            "--set model.revision= with the 40-hex commit that you have read",
        )
    console.note(f"{source.name} brings its own Python code, which is not run: transformers has this architecture")


def refuse_quantized(source: Source) -> None:
    """The base must be in 16 or 32 bits.

    Raises:
        ConfigError: it is quantized already.
    """
    if "quantization_config" in read_config(source):
        raise ConfigError(
            f"{source.name} is quantized already", "give the 16-bit model: qdpo quantizes it while loading"
        )


def keep_weights_unpacked(model: nn.Module) -> None:
    """Switch off bitsandbytes' repacking for CPUs with AVX512-BF16.

    There the first pass without gradients repacks the 4-bit weights in place, and later backward passes and moves see
    the wrong layout. DPO makes such passes for the reference.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - unknown to nn.Module's types


def quantized_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers that bitsandbytes holds in 4 bits."""
    from bitsandbytes.nn import Linear4bit

    return [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]


def read_config(source: Source) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        DataError: it cannot be read.
    """
    path = source.folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{source.name}: config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{source.name}: config.json holds {type(config).__name__}, expected an object")
    return config


def read_license(folder: Path) -> str | None:
    """The licence that a model's own card names, None if it names none."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text("utf-8", errors="replace")
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return None
    try:
        front = yaml.safe_load(text[4 : text.index("\n---", 4)])
    except yaml.YAMLError:
        return None
    value = front.get("license") if isinstance(front, dict) else None
    return value if isinstance(value, str) else None
