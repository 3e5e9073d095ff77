"""Grids beside an adapter: a small change moves as many weights as keep it on average, the same ones everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes import functional
from gguf import GGMLQuantizationType as Type

from qdpo.errors import InputMissingError
from qdpo.export.gguf.fits import fit
from qdpo.model import grid_file
from qdpo.model.grid_file import Grids, placed, save_grids, thresholds
from qdpo.model.grids import LAYOUTS, Grid

EVEN = [kind for kind, layout in LAYOUTS.items() if not layout.codebook]
CPU = torch.device("cpu")
ROWS, COLUMNS = 512, 512


@pytest.fixture(scope="module")
def base() -> torch.Tensor:
    """A matrix as NF4 holds it: 16 values a block."""
    weight = 0.02 * torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    return functional.dequantize_4bit(packed, state).float()


def adapter(base: torch.Tensor, size: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A, B and the scale of a change of low rank, of a share of the base's size."""
    generator = torch.Generator().manual_seed(1)
    b, a = torch.randn(ROWS, 8, generator=generator), torch.randn(8, COLUMNS, generator=generator)
    return a, b, float(size * base.norm() / (b @ a).norm())


def on_grid(grid: Grid, base: torch.Tensor, small: tuple[torch.Tensor, torch.Tensor, float] | None) -> torch.Tensor:
    return placed("w", grid, base, small, torch.float32)


@pytest.mark.parametrize("kind", EVEN, ids=lambda kind: kind.name)
def test_a_file_gives_the_grids_that_were_saved(tmp_path: Path, base: torch.Tensor, kind: Type) -> None:
    grid = fit(base[:8], kind, device=CPU)
    save_grids(tmp_path / "grids", "q4_k_m", [("one.weight", grid)])
    grids = Grids(tmp_path / "grids")
    found = grids.of("one.weight")
    assert (grids.kind, grids.types) == ("q4_k_m", {"one.weight": kind})
    assert found is not None
    assert torch.equal(found.scale, grid.scale)
    assert torch.equal(found.low, grid.low)
    assert grids.of("another.weight") is None


@pytest.mark.parametrize("kind", EVEN, ids=lambda kind: kind.name)
def test_without_a_change_a_weight_stands_on_its_nearest_level(base: torch.Tensor, kind: Type) -> None:
    grid = fit(base, kind, device=CPU)
    nearest = grid.values(grid.levels(base))
    assert torch.equal(on_grid(grid, base, None), nearest)
    assert torch.equal(on_grid(grid, base, adapter(base, 0.0)), nearest)


@pytest.mark.parametrize("size", [5e-4, 2e-3, 8e-3])
@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_K, Type.Q5_0, Type.Q6_K, Type.Q8_0], ids=lambda kind: kind.name)
def test_a_small_change_is_kept_by_thresholds_and_not_by_the_nearest_level(
    base: torch.Tensor, kind: Type, size: float
) -> None:
    grid, small = fit(base, kind, device=CPU), adapter(base, size)
    change = small[1] @ small[0] * small[2]

    def share(moved: torch.Tensor) -> float:
        return float(((moved - grid.nearest(base)) * change).sum() / change.square().sum())

    # of the weights on the lowest and the highest level those that would go beyond stay, one of some thirty
    assert 0.85 < share(on_grid(grid, base, small)) < 1.1
    if kind in (Type.Q4_0, Type.Q4_K, Type.Q5_0) and size < 1e-3:
        assert not 0.5 < share(grid.nearest(base + change)) < 1.5, "or thresholds would not be needed"


def test_thresholds_are_even_and_follow_from_the_place_alone() -> None:
    whole = thresholds("a", slice(0, 64), 4096, CPU)
    assert torch.equal(whole[10:20], thresholds("a", slice(10, 20), 4096, CPU))
    assert float(whole.abs().max()) <= 0.5
    counts = torch.histc(whole, 32, -0.5, 0.5)
    expected = whole.numel() / 32
    # chi squared of 31 degrees of freedom: above 61 in one of 1,000
    assert float(((counts - expected) ** 2 / expected).sum()) < 61
    other = thresholds("b", slice(0, 64), 4096, CPU)
    for one, two in ((whole, other), (whole[:, 1:], whole[:, :-1]), (whole[1:], whole[:-1])):
        correlation = torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4 / whole.numel() ** 0.5


def test_rows_at_a_time_give_the_same(base: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, small = fit(base, Type.Q4_K, device=CPU), adapter(base, 2e-3)
    whole = on_grid(grid, base, small)
    monkeypatch.setattr(grid_file, "ROWS", 7 * COLUMNS)
    assert float((on_grid(grid, base, small) != whole).float().mean()) < 1e-4, "but for ties of products"


def test_a_damaged_file_is_told(tmp_path: Path, base: torch.Tensor) -> None:
    path = tmp_path / "grids"
    with pytest.raises(InputMissingError, match="holds no grids"):
        Grids(path)
    save_grids(path, "q4_0", [("w", fit(base[:2], Type.Q4_0, device=CPU))])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputMissingError, match="holds no grids"):
        Grids(path)
