"""What is evaluated: a model on the packed engine that can be the base or the policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.errors import InputMissingError
from qdpo.evaluation.scoring import Side
from qdpo.files import sha256_file
from qdpo.hardware import find_device, mixed_precision, use_threads
from qdpo.run import folder as run_folder
from qdpo.run.trained import load_adapted, tokenizer_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.template import Template
    from qdpo.engine.engine import Engine

START = "start"
"""The name under which the adapter that training started from is loaded, where it is the reference."""


@dataclass(frozen=True)
class Wording:
    """How conversations become ids.

    Attributes:
        tokenizer: as saved beside the adapter, else the base's.
        template: how conversations become text.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template


@dataclass(frozen=True)
class Subject:
    """A model and its two sides.

    Attributes:
        engine: runs it.
        base: makes the context in which it is the base: the reference of the rewards.
        policy: makes the context in which it is the policy; None when there is no adapter.
        tokenizer, template: its `Wording`.
        config: of the run, or made from the command line.
        about: what it is, for the JSON.
    """

    engine: Engine
    base: Side
    policy: Side | None
    tokenizer: PreTrainedTokenizerBase
    template: Template
    config: RunConfig
    about: dict[str, Any]


def check_adapter(folder: Path) -> Path:
    """A folder that holds a PEFT adapter, its weights in safetensors.

    Raises:
        InputMissingError: it does not.
    """
    if not folder.is_dir():
        raise InputMissingError(f"there is no adapter folder {folder}", "give a folder with adapter_config.json")
    if not (folder / "adapter_config.json").is_file():
        run = (folder / run_folder.RECORD).is_file()
        hint = f"it is a run: --run {folder}" if run else "give the folder that PEFT's save_pretrained wrote"
        raise InputMissingError(f"{folder} holds no adapter (adapter_config.json is missing)", hint)
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputMissingError(
            f"{folder} has no adapter_model.safetensors", "save the adapter as safetensors: pickles are not read"
        )
    return folder


def wording_of(config: RunConfig, adapter: Path | None) -> Wording:
    """How a base, with an adapter or without, reads conversations: known before its weights are loaded.

    Raises:
        QdpoError: adapter, tokenizer or template cannot be had.
    """
    from qdpo.data.template import load_template
    from qdpo.libraries import quiet_libraries
    from qdpo.model.load import load_tokenizer

    quiet_libraries()
    tokenizer = load_tokenizer(config.model) if adapter is None else tokenizer_of(check_adapter(adapter), config.model)
    return Wording(tokenizer, load_template(config.data.template, tokenizer))


def load(config: RunConfig, adapter: Path | None, wording: Wording | None = None, *, writes: bool = False) -> Subject:
    """Load a base, with an adapter or without.

    Args:
        config: how it is read.
        adapter: a PEFT adapter on it; None loads the base alone.
        wording: its `wording_of`, where that is known already.
        writes: it is to continue prompts, and not to score pairs: how those could be laid out is not tried.

    Raises:
        ConfigError: the adapter does not fit.
        UnavailableError: the engine cannot run this model.
        QdpoError: model, tokenizer or template cannot be loaded.
    """
    from qdpo.engine.attach import attach
    from qdpo.engine.engine import Engine
    from qdpo.model.load import load_base
    from qdpo.model.weights import weights_sha256

    wording = wording or wording_of(config, adapter)
    device = find_device()
    if device.kind == "cpu":
        use_threads()
    base_side: Side = contextlib.nullcontext
    policy_side: Side | None = None
    about: dict[str, Any] = {"base": config.model.name, "quantization": config.model.quantization}
    if adapter is None:
        base = load_base(config.model, device)
    else:
        base, policy = load_adapted(config.model, adapter, device)
        base_side, policy_side = _sides(policy, config)
        about |= {
            "reference": config.reference,
            "adapter": str(adapter),
            "adapter_sha256": sha256_file(adapter / "adapter_model.safetensors"),
        }
    base.model.eval()
    about |= {
        "revision": base.source.revision,
        "weights_sha256": base.weights_sha256 or weights_sha256(base.source),
        "dtype": str(base.dtype).removeprefix("torch."),
        "device": device.name,
    }
    autocast = mixed_precision(device, base.dtype)
    if writes:
        engine = Engine(base.model, device.torch, autocast)
    else:
        engine, decision = attach(base.model, device.torch, autocast)
        if decision.way != "packed":
            console.note(f"engine: {decision.reason}")
        about["engine"] = decision.way
    return Subject(engine, base_side, policy_side, wording.tokenizer, wording.template, config, about)


def _sides(policy: PeftModel, config: RunConfig) -> tuple[Side, Side]:
    """The contexts of reference and policy; the reference may be the adapter that training started from."""
    if config.reference != "start" or config.model.adapter is None:
        return policy.disable_adapter, contextlib.nullcontext
    start = check_adapter(Path(config.model.adapter).expanduser())
    policy.load_adapter(str(start), adapter_name=START)
    policy.set_adapter("default")
    return partial(_switched, policy), contextlib.nullcontext


@contextlib.contextmanager
def _switched(policy: PeftModel) -> Iterator[None]:
    """The starting adapter instead of the trained one, for a while."""
    policy.set_adapter(START)
    try:
        yield
    finally:
        policy.set_adapter("default")
