"""`qdpo.accelerate` against the same trainer without it: every loss, every metric, whole training runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from parity.trl_cpu import install_torch_head, make_rows, make_trl_trainer, trl_batch, trl_metrics

import qdpo
from qdpo.errors import UnavailableError

LOSSES = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": name} for name in LOSSES},
    "robust smoothed": {"loss_type": "robust", "label_smoothing": 0.1},
    "sigmoid and sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
    "forward_kl": {"loss_type": "sigmoid", "f_divergence_type": "forward_kl"},
    "length desensitised": {"loss_type": "sigmoid", "ld_alpha": 0.5},
    "weighted by the policy": {"loss_type": "sigmoid", "use_weighting": True},
    "window": {"loss_type": "sigmoid", "kind": "mistral"},
}


@pytest.fixture(autouse=True)
def torch_head() -> Iterator[None]:
    with install_torch_head():
        yield


def make(tmp_path: Path, **settings: Any) -> Any:
    settings = dict(settings)
    if settings.get("loss_type") == "exo_pair":
        settings["label_smoothing"] = 1e-3
    return make_trl_trainer(settings.pop("loss_type", "sigmoid"), rows=make_rows(6), output_dir=tmp_path, **settings)


def measured(trainer: Any) -> tuple[float, torch.Tensor, dict[str, float]]:
    """Loss, gradient and metrics of one batch."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trl_batch(trainer))
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return loss.item(), gradient, trl_metrics(trainer)


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_gradient_and_metrics_are_unchanged(name: str, tmp_path: Path) -> None:
    trainer = make(tmp_path, **SETTINGS[name])
    loss, gradient, metrics = measured(trainer)
    done = qdpo.accelerate(trainer)
    again, mine, ours = measured(trainer)
    assert done.packed == 2  # the reference and the policy
    assert done.passed_on == 0
    assert again == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert float((mine - gradient).norm() / gradient.norm()) < 1e-4
    assert ours.keys() == metrics.keys()
    assert ours.pop("num_tokens") == 2 * metrics.pop("num_tokens")  # TRL counts on from the first pass
    for key, value in metrics.items():
        assert ours[key] == pytest.approx(value, rel=1e-4, abs=1e-4), key


def test_training_takes_the_same_steps(tmp_path: Path) -> None:
    logs = []
    for packed in (False, True):
        trainer = make(
            tmp_path, kind="mistral", max_steps=4, logging_steps=1, per_device_train_batch_size=3,
            gradient_checkpointing=packed,
        )  # fmt: skip
        if packed:
            qdpo.accelerate(trainer)
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    for before, after in zip(*logs, strict=True):
        for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logits/rejected", "entropy"):
            assert after[key] == pytest.approx(before[key], rel=1e-3, abs=1e-4), key


def test_undo_gives_the_trainer_back(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    loss, gradient, _ = measured(trainer)
    torch.backends.cuda.enable_cudnn_sdp(True)
    done = qdpo.accelerate(trainer)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    done.undo()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    again, mine, _ = measured(trainer)
    assert done.packed == 0
    assert again == loss
    assert torch.equal(mine, gradient)


def test_ordinary_calls_are_passed_on(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    ids = torch.tensor([[1, 5, 6, 7]])
    before = trainer.model(input_ids=ids).logits
    done = qdpo.accelerate(trainer)
    torch.testing.assert_close(trainer.model(input_ids=ids).logits, before, rtol=1e-5, atol=1e-5)
    assert done.packed == 0


def test_a_batch_that_is_not_a_batch_of_pairs_is_left_to_trl(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    batch = trl_batch(trainer)
    batch["completion_mask"][0, :3] = 1  # a label inside the prompt of one side
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model, dict(batch)).item()
        done = qdpo.accelerate(trainer)
        assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(expected, rel=1e-5)
    assert done.packed == 0
    assert done.passed_on == 2


@pytest.mark.parametrize("version", ["1.14.9", "1.17.0", "0.24.0"])
def test_other_versions_of_trl_are_refused(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path)
    forward = trainer.model.get_base_model().__dict__["forward"]
    monkeypatch.setattr(trl, "__version__", version)
    with pytest.raises(UnavailableError, match=version):
        qdpo.accelerate(trainer)
    assert trainer.model.get_base_model().__dict__["forward"] is forward


def test_another_trainer_is_refused() -> None:
    with pytest.raises(UnavailableError, match=r"trl\.DPOTrainer, not a object"):
        qdpo.accelerate(object())


def test_importing_qdpo_imports_no_torch() -> None:
    code = "import sys, qdpo; assert 'torch' not in sys.modules; qdpo.accelerate; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = qdpo.nothing_like_this  # type: ignore[attr-defined]
