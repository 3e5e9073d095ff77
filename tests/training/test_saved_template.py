"""The tokenizer beside an adapter asks as the run has trained, whatever template the base brings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer

from qdpo.cli.main import main
from qdpo.data.template import NAMED

if TYPE_CHECKING:
    from training.tiny import Tiny


def test_a_named_template_is_saved_with_the_adapter(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["data.template=mistral", "train.max_steps=1"]
    arguments = ["train", "--preset", str(tiny.preset), "--run-dir", str(run)]
    assert main([*arguments, *(word for setting in settings for word in ("--set", setting))]) == 0
    assert AutoTokenizer.from_pretrained(tiny.model).chat_template != NAMED["mistral"]
    assert AutoTokenizer.from_pretrained(run / "adapter").chat_template == NAMED["mistral"]
