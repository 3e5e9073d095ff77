"""Loading what a run has made: its base as it was trained on, its adapter, its tokenizer and template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.errors import InputMissingError
from qdpo.files import manifest_problems
from qdpo.hardware import Device, find_device
from qdpo.training import run_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.template import Template


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
    from peft import PeftModel
    from transformers import AutoTokenizer

    from qdpo.data.template import load_template
    from qdpo.model.load import load_base

    config = run_folder.reopen(folder).config
    adapter = folder / "adapter"
    if not adapter.is_dir():
        raise InputMissingError(
            f"{folder} has no adapter yet", f"finish the run: qdpo train --run-dir {folder} --resume"
        )
    if problems := manifest_problems(adapter):
        raise InputMissingError(
            f"{adapter} is damaged: {problems[0]}", "restore it, or resume the run from a checkpoint"
        )
    device = find_device()
    base = load_base(config.model, device)
    console.note(f"{config.model.name} in {str(base.dtype).removeprefix('torch.')} on {device.name}")
    tokenizer = AutoTokenizer.from_pretrained(adapter, trust_remote_code=config.model.trust_remote_code)
    policy = PeftModel.from_pretrained(base.model, str(adapter))
    policy.eval()
    policy.config.use_cache = True
    return Trained(policy, tokenizer, load_template(config.data.template, tokenizer), config, device)
