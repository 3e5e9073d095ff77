"""Loading what a run has made, or any model with an adapter: base, adapter, tokenizer and template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.config.schema import LoraSection, ModelSection, RunConfig
from qdpo.errors import InputMissingError
from qdpo.files import manifest_problems
from qdpo.hardware import Device, find_device
from qdpo.model.source import EMBEDDED
from qdpo.run.base import base_of
from qdpo.run.folder import ADAPTER, reopen
from qdpo.run.tokenizer import has_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.template import Template
    from qdpo.model.load import Base


@dataclass(frozen=True)
class Trained:
    """The result of a run, ready to use.

    Attributes:
        policy: base and adapter, in evaluation mode; `policy.disable_adapter()` gives the base.
        tokenizer: as saved beside the adapter.
        template: how conversations become text.
        config: what the run was configured to do.
        device: where the model is.
    """

    policy: PeftModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    config: RunConfig
    device: Device


def load_trained(folder: Path) -> Trained:
    """Load the base of a run and its final adapter.

    Raises:
        InputMissingError: the folder holds no run, or its adapter is missing or damaged.
    """
    from qdpo.data.template import load_template

    config = reopen(folder).config
    adapter = adapter_of(folder)
    device = find_device()
    section = where_it_lies(config.model, folder)
    _, model = load_adapted(section, adapter, device)
    tokenizer = tokenizer_of(adapter, section)
    model.config.use_cache = True
    return Trained(model, tokenizer, load_template(config.data.template, tokenizer), config, device)


def where_it_lies(section: ModelSection, run: Path) -> ModelSection:
    """How a run's base is loaded, from where it lies now.

    Raises:
        InputMissingError: it is not where it was.
        UnavailableError: the hub does not have it, or cannot be reached.
    """
    source = base_of(run)
    name = section.name if source.revision or source.name == EMBEDDED else str(source.folder)
    return section.model_copy(update={"name": name, "revision": source.revision})


def load_adapted(config: ModelSection, adapter: Path, device: Device) -> tuple[Base, PeftModel]:
    """A base as the section says and an adapter on it, frozen and in evaluation mode, on the grids it was trained on.

    Raises:
        ConfigError: the adapter does not fit the base.
        QdpoError: the base cannot be loaded.
    """
    from qdpo.engine.fuse import fuse
    from qdpo.engine.on_grid import put_on_grid
    from qdpo.model.grid_file import GRIDS, Grids
    from qdpo.model.load import load_base
    from qdpo.model.lora import attach

    base = load_base(config, device)
    console.note(f"{config.name} in {str(base.dtype).removeprefix('torch.')} on {device.name}")
    # the adapter brings its own configuration and weights: neither section nor seed is used
    policy = attach(base.model, LoraSection(), 0, str(adapter))
    policy.requires_grad_(False)
    policy.eval()
    if (adapter / GRIDS).is_file():
        fuse(policy, mlp=False, norm=False)
        put_on_grid(policy, Grids(adapter / GRIDS))
    return base, policy


def tokenizer_of(adapter: Path, config: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer as saved beside an adapter, else the base's."""
    from transformers import AutoTokenizer

    from qdpo.model.load import load_tokenizer

    if has_tokenizer(adapter):
        return AutoTokenizer.from_pretrained(adapter, trust_remote_code=config.trust_remote_code)
    return load_tokenizer(config)


def adapter_of(folder: Path) -> Path:
    """The final adapter of a run, found whole.

    Raises:
        InputMissingError: it is missing or damaged.
    """
    adapter = folder / ADAPTER
    if not adapter.is_dir():
        raise InputMissingError(
            f"{folder} has no adapter yet", f"finish the run: qdpo train --run-dir {folder} --resume"
        )
    if problems := manifest_problems(adapter):
        raise InputMissingError(
            f"{adapter} is damaged: {problems[0]}", "restore it, or resume the run from a checkpoint"
        )
    return adapter
