"""Checkpoints hold everything a bitwise resume needs, without pickle, and are read only when whole."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from torch import nn
from training.tiny import Tiny, make_model, train_until

from qdpo.config.schema import LoraSection
from qdpo.errors import DataError
from qdpo.files import staged_folder
from qdpo.model.lora import attach
from qdpo.run import checkpoint

OPTIMIZERS = {
    "torch": torch.optim.AdamW,
    "torch fused": partial(torch.optim.AdamW, fused=True),
    "bitsandbytes 32 bit": bnb.optim.AdamW32bit,
    "bitsandbytes 8 bit": bnb.optim.AdamW8bit,
}


def make_policy(seed: int = 0, r: int = 4) -> PeftModel:
    policy = attach(make_model("llama"), LoraSection(r=r), seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def make_weights() -> list[nn.Parameter]:
    # bitsandbytes keeps state in 8 bits only from 4,096 values on
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(64, 128)), nn.Parameter(torch.randn(8, 4))]


def steps(weights: list[nn.Parameter], optimizer: Any, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_read_back_goes_on_to_the_bit(kind: str, tmp_path: Path) -> None:
    weights = make_weights()
    optimizer = OPTIMIZERS[kind](weights, lr=1e-2, weight_decay=0.01)
    steps(weights, optimizer, 5, seed=1)
    checkpoint.write_optimizer(optimizer, tmp_path)
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    other = OPTIMIZERS[kind](copies, lr=1e-2, weight_decay=0.01)
    checkpoint.read_optimizer(other, tmp_path)

    steps(weights, optimizer, 5, seed=2)
    steps(copies, other, 5, seed=2)
    assert all(torch.equal(weight, copy) for weight, copy in zip(weights, copies, strict=True))
    if kind == "bitsandbytes 8 bit":
        assert optimizer.state[weights[0]]["state1"].dtype == torch.uint8


def test_settings_are_the_configurations_and_not_the_checkpoints(tmp_path: Path) -> None:
    weights = make_weights()
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    steps(weights, optimizer, 1, seed=1)
    checkpoint.write_optimizer(optimizer, tmp_path)
    other = torch.optim.AdamW(weights, lr=123.0, eps=1e-3)
    checkpoint.read_optimizer(other, tmp_path)
    assert (other.param_groups[0]["lr"], other.param_groups[0]["eps"]) == (123.0, 1e-3)


def test_another_optimizers_state_is_refused(tmp_path: Path) -> None:
    weights = make_weights()
    optimizer = torch.optim.AdamW([{"params": weights[:1]}, {"params": weights[1:]}], lr=1e-2)
    steps(weights, optimizer, 1, seed=1)
    checkpoint.write_optimizer(optimizer, tmp_path)
    with pytest.raises(DataError, match=r"the optimizer's state in .* does not fit"):
        checkpoint.read_optimizer(torch.optim.AdamW(weights), tmp_path)


def test_the_8_bit_state_is_written_in_8_bits(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = make_weights()
    optimizer = bnb.optim.AdamW8bit(weights, lr=1e-2)
    steps(weights, optimizer, 1, seed=1)
    checkpoint.write_optimizer(optimizer, tmp_path)
    dtypes = {name: tensor.dtype for name, tensor in load_file(tmp_path / "optimizer.safetensors").items()}
    assert sum(dtype == torch.uint8 for dtype in dtypes.values()) == 2, dtypes


def test_an_adapter_read_back_is_the_same_in_exact_peft_layout(tmp_path: Path) -> None:
    policy = make_policy(seed=1)
    checkpoint.write_adapter(policy, tmp_path, "some/base")
    other = make_policy(seed=2)
    checkpoint.read_adapter(other, tmp_path)
    loaded = PeftModel.from_pretrained(make_model("llama"), tmp_path)
    expected = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert expected
    for model in (other, loaded):
        found = dict(model.named_parameters())
        assert all(torch.equal(parameter, found[name]) for name, parameter in expected.items())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])
    assert policy.peft_config["default"].inference_mode is False


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint.write_adapter(make_policy(r=8), tmp_path, "base")
    with pytest.raises(DataError, match="does not fit this model"):
        checkpoint.read_adapter(make_policy(r=4), tmp_path)


def test_an_adapter_with_a_layer_missing_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint.write_adapter(make_policy(), tmp_path, "base")
    weights = load_file(tmp_path / checkpoint.ADAPTER_WEIGHTS)
    weights.pop(sorted(weights)[0])
    save_file(weights, tmp_path / checkpoint.ADAPTER_WEIGHTS)
    with pytest.raises(DataError, match="does not fit this model"):
        checkpoint.read_adapter(make_policy(seed=3), tmp_path)


def test_a_real_checkpoint_holds_no_pickle(tiny: Tiny, tmp_path: Path) -> None:
    train_until(tiny, tmp_path / "run", 2, "train.save_every=1", "train.optim=paged_adamw_8bit")
    folder = tmp_path / "run" / "checkpoints" / "step-000001"
    files = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"} <= files
    assert {Path(name).suffix for name in files} == {".safetensors", ".json"}
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    for path in folder.glob("*.safetensors"):
        # a pickle, or the zip that torch.save makes of one, begins otherwise
        header = path.read_bytes()[:9]
        assert header[8:] == b"{", path


def write_checkpoint(checkpoints: Path, step: int) -> Path:
    folder = checkpoint.step_folder(checkpoints, step)
    with staged_folder(folder) as staging:
        (staging / "content.json").write_text(f'{{"step": {step}}}')
    return folder


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_checkpoint(tmp_path, step) for step in (5, 10, 15, 20)]
    assert checkpoint.newest_whole(tmp_path) == folders[3]
    assert capsys.readouterr().err == ""
    (folders[3] / "content.json").write_text('{"step": 21}')
    (folders[2] / "manifest.json").unlink()
    assert checkpoint.newest_whole(tmp_path) == folders[1]
    said = capsys.readouterr().err
    assert f"{folders[3]} is damaged and is passed over: content.json does not match its SHA-256" in said
    assert f"{folders[2]} is damaged and is passed over: manifest.json is missing" in said


def test_checkpoints_of_which_none_is_whole_are_an_error(tmp_path: Path) -> None:
    for step in (5, 10):
        (write_checkpoint(tmp_path, step) / "content.json").write_text("")
    with pytest.raises(DataError, match="none of the 2 checkpoints"):
        checkpoint.newest_whole(tmp_path)


def test_no_checkpoint_at_all_is_none_and_remains_of_a_crash_are_removed(tmp_path: Path) -> None:
    assert checkpoint.newest_whole(tmp_path / "absent") is None
    (tmp_path / ".staging-step-000005-123").mkdir()
    assert checkpoint.newest_whole(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 1_000_000):
        write_checkpoint(tmp_path, step)
    (tmp_path / "step-notes").mkdir()
    checkpoint.prune(tmp_path, keep=2, protected=10)
    assert checkpoint.complete_steps(tmp_path) == [10, 20, 1_000_000]
    assert (tmp_path / "step-notes").is_dir()
