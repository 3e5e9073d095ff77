"""Paged state stays in pages over a resume, on pages that a CPU only pretends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from run.test_checkpoint import steps
from torch import nn

from qdpo.run import checkpoint


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_shows_in_its_scale(fused: bool) -> None:
    """What the recipe goes by; the fused one is always called, and leaves the weights alone by itself."""
    weight, scaler = nn.Parameter(torch.ones(3)), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW([weight], fused=fused)
    scaler.scale(torch.ones(()))
    for gradient, skipped in ((float("inf"), True), (1.0, False)):
        weight.grad = torch.full((3,), gradient)
        before, scale = weight.detach().clone(), scaler.get_scale()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert (scaler.get_scale() < scale) is skipped
        assert torch.equal(weight, before) is skipped


# ---------------------------------------------------------------------------------------------------------------- pages

OPTIMIZERS = {"32 bit": bnb.optim.PagedAdamW32bit, "8 bit": bnb.optim.PagedAdamW8bit}


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Lets bitsandbytes page on a CPU, by its rule for CUDA; the list holds what it has allocated."""
    allocated: list[torch.Tensor] = []

    def get_paged(*shape: int, dtype: torch.dtype, device: torch.device) -> Any:
        page: Any = torch.full(shape, 77, dtype=dtype)
        page.is_paged = True
        allocated.append(page)
        return page

    class Elsewhere:
        """A weight that seems to be on CUDA, to whoever asks for its device only."""

        def __init__(self, weight: nn.Parameter) -> None:
            self.device, self.shape, self.numel = torch.device("cuda", 0), weight.shape, weight.numel

    plain = bnb.optim.optimizer.Optimizer8bit.get_state_buffer

    def get_state_buffer(self: Any, weight: nn.Parameter, dtype: torch.dtype = torch.float32) -> Any:
        return plain(self, Elsewhere(weight) if weight.numel() >= 1e5 else weight, dtype)

    monkeypatch.setattr(bnb.optim.optimizer.Optimizer8bit, "get_state_buffer", get_state_buffer)
    monkeypatch.setattr("bitsandbytes.functional.get_paged", get_paged)
    monkeypatch.setattr("bitsandbytes.functional.fill", lambda page, value: page.fill_(value))
    monkeypatch.setattr("bitsandbytes.functional.prefetch_tensor", lambda page: None)
    return allocated


def make_weights() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(size)) for size in ((400, 256), (64, 128), (8, 4))]


def paged(optimizer: Any, weights: list[nn.Parameter]) -> list[bool]:
    """Whether each weight's moments are in pages."""
    return [
        all(getattr(optimizer.state[weight][name], "is_paged", False) for name in ("state1", "state2"))
        for weight in weights
    ]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_paged_state_is_paged_again_and_goes_on_to_the_bit(
    kind: str, pages: list[torch.Tensor], tmp_path: Path
) -> None:
    weights = make_weights()
    optimizer: Any = OPTIMIZERS[kind](weights, lr=1e-2, weight_decay=0.01)
    steps(weights, optimizer, 3, seed=1)
    assert paged(optimizer, weights) == [True, False, False]
    checkpoint.write_optimizer(optimizer, tmp_path)

    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    inner: Any = OPTIMIZERS[kind](copies, lr=1e-2, weight_decay=0.01)
    checkpoint.read_optimizer(inner, tmp_path)
    assert paged(inner, copies) == [True, False, False]
    assert len(pages) == 4
    assert inner.page_mng.paged_tensors[-2:] == pages[-2:]
    for weight, copy in zip(weights, copies, strict=True):
        assert optimizer.state[weight].keys() == inner.state[copy].keys()
        for name, value in optimizer.state[weight].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(inner.state[copy][name])), name

    steps(weights, optimizer, 3, seed=2)
    steps(copies, inner, 3, seed=2)
    assert all(torch.equal(weight, copy) for weight, copy in zip(weights, copies, strict=True))
    assert paged(inner, copies) == [True, False, False]


def test_bitsandbytes_itself_forgets_the_pages(
    pages: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = make_weights()
    optimizer, other = (bnb.optim.PagedAdamW32bit(weights) for _ in range(2))
    steps(weights, optimizer, 1, seed=1)
    checkpoint.write_optimizer(optimizer, tmp_path)
    monkeypatch.setattr(checkpoint, "load_state", lambda optimizer, state: optimizer.load_state_dict(state))
    checkpoint.read_optimizer(other, tmp_path)
    assert paged(other, weights) == [False, False, False]


def test_on_a_cpu_nothing_is_said_of_pages(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    weights = make_weights()
    optimizer = bnb.optim.PagedAdamW32bit(weights)
    steps(weights, optimizer, 1, seed=1)
    checkpoint.write_optimizer(optimizer, tmp_path)
    recwarn.clear()
    other = bnb.optim.PagedAdamW32bit(weights)
    checkpoint.read_optimizer(other, tmp_path)
    assert not [warning for warning in recwarn if "aged" in str(warning.message)]
    assert torch.equal(other.state[weights[0]]["state1"], optimizer.state[weights[0]]["state1"])
