"""`engine: trl`: stock TRL gives what the packed engine gives, and says why where it cannot run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils
from parity.trl_cpu import install_torch_head
from training.tiny import StopAt, Stopped, Tiny, TinyRun, resolve_tiny, train_tiny, with_callbacks
from transformers import LlamaModel

from qdpo.engine.engine import Engine
from qdpo.errors import ConfigError, UnavailableError
from qdpo.hardware import Device
from qdpo.training import run as run_module
from qdpo.training import trl_engine
from qdpo.training.stages import model as model_stage

TRL = "engine=trl"
# Three steps an epoch and 12 held-out pairs: a second epoch, rows left over, and an evaluation of unequal batches.
SHORT = (
    "train.max_steps=5",
    "train.pairs_per_step=14",
    "train.eval_every=2",
    "train.save_every=3",
    "packing.tokens_per_micro_batch=1400",
)
LIKE_OURS = {"rel": 1e-4, "abs": 1e-4}


@pytest.fixture
def torch_head() -> Iterator[None]:
    """TRL without Triton."""
    with install_torch_head():
        yield


@pytest.fixture(scope="module")
def packed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The run that TRL is compared with."""
    return train_tiny(tiny, tmp_path_factory.mktemp("packed") / "run", *SHORT)


@pytest.fixture(scope="module")
def stock(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The same run by TRL."""
    with install_torch_head():
        return train_tiny(tiny, tmp_path_factory.mktemp("trl") / "run", *SHORT, TRL)


def test_the_same_losses_and_metrics_as_the_packed_engine(packed: TinyRun, stock: TinyRun) -> None:
    assert len(stock.losses) == 5
    assert stock.losses == pytest.approx(packed.losses, abs=1e-4)
    assert [line.keys() for line in stock.metrics] == [line.keys() for line in packed.metrics]
    # TRL takes these as means of batches, not of tokens
    by_batch = ("logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy")
    for ours, theirs in zip(packed.measured(), stock.measured(), strict=True):
        if ours["step"] <= 2 and "loss" in ours:
            # before the first update, which pairs are won is decided by rounding
            del ours["rewards/accuracies"], theirs["rewards/accuracies"]
        exact = [name for name in ours if not name.endswith(by_batch)]
        assert {n: theirs[n] for n in exact} == pytest.approx({n: ours[n] for n in exact}, **LIKE_OURS)
        assert theirs == pytest.approx(ours, rel=0.2, abs=0.02)


def test_the_same_adapter_in_fp32(packed: TinyRun, stock: TinyRun) -> None:
    assert stock.adapter.keys() == packed.adapter.keys()
    for name, weight in packed.adapter.items():
        assert stock.adapter[name].dtype == weight.dtype
        assert (stock.adapter[name] - weight).abs().max() < 1e-4
    config = json.loads((stock.folder / "adapter" / "adapter_config.json").read_text())
    assert config == json.loads((packed.folder / "adapter" / "adapter_config.json").read_text())


def test_leaves_a_whole_run_folder(packed: TinyRun, stock: TinyRun) -> None:
    assert stock.record["state"] == "finished"
    assert stock.record["engine"]["way"] == "trl"
    assert stock.record["result"]["tokens"] == packed.record["result"]["tokens"]
    assert [c["name"] for c in stock.record["checks"]][-1] == "every adapter learns"
    assert "engine: trl" in (stock.folder / "README.md").read_text()
    assert sorted(p.name for p in (stock.folder / "checkpoints").iterdir()) == ["step-000003", "step-000005"]


def test_a_batch_of_the_whole_step_gives_the_same_losses(
    stock: TinyRun, tiny: Tiny, tmp_path: Path, torch_head: None, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train_tiny(tiny, tmp_path / "run", *SHORT, TRL, "packing.tokens_per_micro_batch=100000")
    assert "14 of a step's 14 pairs" in "".join(capsys.readouterr())
    assert whole.losses == pytest.approx(stock.losses, abs=1e-5)


@pytest.mark.parametrize("loss", ["[ipo]", "[sigmoid, sft]", "[aot]"])
def test_other_losses(loss: str, tiny: Tiny, tmp_path: Path, torch_head: None) -> None:
    runs = [train_tiny(tiny, tmp_path / e, *SHORT, f"loss.loss_type={loss}", f"engine={e}") for e in ("packed", "trl")]
    assert runs[1].losses == pytest.approx(runs[0].losses, **LIKE_OURS)


@pytest.mark.parametrize("reference", ["base", "start"])
def test_continues_an_adapter(reference: str, packed: TinyRun, tiny: Tiny, tmp_path: Path, torch_head: None) -> None:
    start = (f"model.adapter={packed.folder / 'adapter'}", f"reference={reference}")
    ours, theirs = (train_tiny(tiny, tmp_path / e, *SHORT, *start, f"engine={e}") for e in ("packed", "trl"))
    assert theirs.losses == pytest.approx(ours.losses, abs=1e-4)
    # the two references differ from the first step on
    assert (abs(theirs.metrics[0]["eval_rewards/margins"]) < 1e-4) == (reference == "start")
    assert theirs.adapter.keys() == ours.adapter.keys()


def test_resumes_to_the_same_adapter(stock: TinyRun, tiny: Tiny, tmp_path: Path, torch_head: None) -> None:
    folder = tmp_path / "run"
    with with_callbacks(StopAt(4)), pytest.raises(Stopped):
        train_tiny(tiny, folder, *SHORT, TRL)
    resumed = train_tiny(tiny, folder, *SHORT, TRL, resume=True)
    assert resumed.sha256 == stock.sha256
    assert resumed.measured() == stock.measured()
    again = train_tiny(tiny, folder, *SHORT, TRL, resume=True)
    assert again.sha256 == stock.sha256
    assert again.record["result"]["steps"] == 5


def test_the_best_evaluation_can_be_the_result(tiny: Tiny, tmp_path: Path, torch_head: None) -> None:
    run = train_tiny(tiny, tmp_path / "run", *SHORT, TRL, "train.load_best=loss", "train.learning_rate=0.3")
    losses = {line["step"]: line["eval_loss"] for line in run.metrics if "eval_loss" in line and line["step"]}
    best = min(losses, key=losses.__getitem__)
    assert run.record["result"]["adapter_step"] == best != 5


class Triton:
    """Stands for TRL's own head."""

    __module__ = "trl.kernels"


GPU = Device("cuda", "GPU", (9, 0), 1)
T4 = Device("cuda", "Tesla T4", (7, 5), 1)
CPU = Device("cpu", "CPU", None, 1)


OLD, NEW = None, lambda device: device.type == "cuda"
"""TRL's `_use_triton`: 1.15 has none, 1.16 has a head without Triton for CPUs."""


def pretend(monkeypatch: pytest.MonkeyPatch, head: Any, use_triton: Any) -> None:
    """Another TRL."""
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", head)
    monkeypatch.delattr(trl.trainer.utils, "_use_triton", raising=False)
    if use_triton is not None:
        monkeypatch.setattr(trl.trainer.utils, "_use_triton", use_triton, raising=False)


@pytest.mark.parametrize(
    ("head", "use_triton", "device", "reason", "hint"),
    [
        (None, OLD, GPU, "Triton, which is not installed", r"trl 1\.16"),
        (None, OLD, CPU, "Triton, which is not installed", r"trl 1\.16"),
        (Triton, OLD, CPU, "on a GPU only", r"trl 1\.16"),
        (Triton, OLD, T4, "Tesla T4 has 7.5", "needs no Triton"),
        (Triton, NEW, T4, "Tesla T4 has 7.5", "needs no Triton"),
    ],
)
def test_says_why_it_cannot_run(
    head: Any,
    use_triton: Any,
    device: Device,
    reason: str,
    hint: str,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, head, use_triton)
    monkeypatch.setattr(run_module, "find_device", lambda: device)
    with pytest.raises(UnavailableError, match=reason) as caught:
        train_tiny(tiny, tmp_path / "run", TRL)
    assert caught.value.hint is not None
    assert "engine: packed" in caught.value.hint
    assert re.search(hint, caught.value.hint)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("use_triton", "device"), [(OLD, GPU), (NEW, GPU), (NEW, CPU), (lambda device: False, T4)])
def test_runs_where_its_head_does(use_triton: Any, device: Device, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Triton, use_triton)
    trl_engine.check(resolve_tiny(tiny, TRL).config, device)


@pytest.mark.skipif(not hasattr(trl.trainer.utils, "_use_triton"), reason="TRL has a head for CPUs from 1.16 on")
def test_trl_as_it_is_runs_on_a_cpu(packed: TinyRun, tiny: Tiny, tmp_path: Path) -> None:
    assert trl.trainer.utils._ChunkedLogProbFunction.__module__.startswith("trl.")
    run = train_tiny(tiny, tmp_path / "run", *SHORT, TRL)
    assert run.losses == pytest.approx(packed.losses, abs=1e-4)


def test_held_out_texts_are_scored_in_the_precision_of_training(
    tiny: Tiny, tmp_path: Path, torch_head: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_stage, "mixed_precision", lambda *args: partial(torch.autocast, "cpu", torch.bfloat16))
    seen: dict[str, set[torch.dtype | None]] = {"training": set(), "texts": set()}

    def here() -> torch.dtype | None:
        return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    def scored(engine: Engine, texts: Any, budget: int) -> float:
        with engine.autocast():
            seen["texts"].add(here())
        return 0.0

    monkeypatch.setattr(trl_engine, "text_nll", scored)
    embed = LlamaModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            seen["training"].add(here())
        return embed(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "The cat is in the house."}) + "\n")
    train_tiny(tiny, tmp_path / "run", "train.max_steps=1", TRL, f"data.text={texts}")
    assert seen == {"training": {torch.bfloat16}, "texts": {torch.bfloat16}}


def test_refuses_label_smoothing_that_trl_would_ignore(tiny: Tiny, tmp_path: Path, torch_head: None) -> None:
    with pytest.raises(ConfigError, match=r"loss\.label_smoothing is 0\.1, which TRL ignores"):
        train_tiny(tiny, tmp_path / "run", TRL, "loss.label_smoothing=0.1")
    trl_engine.check(resolve_tiny(tiny, TRL, "loss.label_smoothing=0.1", "loss.loss_type=[robust]").config, CPU)
