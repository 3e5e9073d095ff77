"""bfloat16 on a CPU: it trains what float32 trains, is chosen once a run, and is what makes the run's bits."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from training.tiny import StopAt, Stopped, Tiny, train_tiny, with_callbacks

from qdpo import cpu
from qdpo.errors import TrainingError

SETTINGS = ("train.max_steps=12", "train.save_every=4", "samples.count=0", "packing.reference_cache=run")


def chosen(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    """As if a measurement had said so."""
    monkeypatch.setattr(cpu, "choose_bf16", lambda weight_bytes: (fast, "as measured"))


def test_it_trains_what_float32_trains(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = train_tiny(tiny, tmp_path / "float32", *SETTINGS)
    chosen(monkeypatch, fast=True)
    half = train_tiny(tiny, tmp_path / "bfloat16", *SETTINGS)
    assert (exact.record["dtype"]["compute"], half.record["dtype"]["compute"]) == ("float32", "bfloat16")
    assert half.record["dtype"]["reason"] == "as measured"
    assert half.losses == pytest.approx(exact.losses, abs=1e-2)
    assert half.losses != exact.losses
    assert half.losses[-1] < half.losses[0]
    assert all(weight.dtype == torch.float32 for weight in half.adapter.values())
    # most products are in bfloat16; those of the head's sums and of rotary embeddings are not
    products = half.record["engine"]["used"]["products"]
    assert products["bfloat16"] > products.get("float32", 0)


def test_without_autocast_it_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qdpo.training.stages import model

    monkeypatch.setattr(model, "mixed_precision", lambda device, dtype: contextlib.nullcontext)
    with pytest.raises(TrainingError):
        train_tiny(tiny, tmp_path / "run", *SETTINGS, "model.dtype=bfloat16")


def test_a_resumed_run_computes_in_the_type_that_it_began_with(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(monkeypatch, fast=True)
    straight = train_tiny(tiny, tmp_path / "straight", *SETTINGS)
    with pytest.raises(Stopped), with_callbacks(StopAt(6)):
        train_tiny(tiny, tmp_path / "run", *SETTINGS)
    # now a measurement would say otherwise
    chosen(monkeypatch, fast=False)
    resumed = train_tiny(tiny, tmp_path / "run", *SETTINGS, resume=True)
    assert resumed.record["dtype"] == {"compute": "bfloat16", "reason": "as measured"}
    assert resumed.sha256 == straight.sha256
