"""Grids: what a level stands for is what a reader of the file gets, whichever way the level was chosen."""

from __future__ import annotations

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from qdpo.export.gguf.encode import encode
from qdpo.export.gguf.fits import fit
from qdpo.export.gguf.packing import pack
from qdpo.model.grids import LAYOUTS

KINDS = list(LAYOUTS)
CPU = torch.device("cpu")


def matrix(rows: int = 24, columns: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator) * 0.04
    x[1] = 0  # a row, and blocks, of zeros
    x[2, 100:] = 0
    return x


def importance(columns: int = 512) -> torch.Tensor:
    return torch.rand(columns, generator=torch.Generator().manual_seed(1)).exp() ** 6


def decoded(stored: torch.Tensor, kind: Type) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(stored.numpy(), kind))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_levels_decode_to_the_grids_values(kind: Type, weighted: bool) -> None:
    x = matrix()
    grid = fit(x, kind, importance() if weighted else None, CPU)
    top = grid.layout.top
    q = torch.randint(0, top + 1, x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    assert torch.equal(decoded(pack(grid, q), kind), grid.values(q))


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_levels_are_the_nearest(kind: Type) -> None:
    x = matrix()
    grid = fit(x, kind, None, CPU)
    q = grid.levels(x)
    error = (grid.values(q) - x).abs()
    for step in (-1, 1):
        other = (q.int() + step).clamp(0, grid.layout.top).to(torch.uint8)
        assert (error <= (grid.values(other) - x).abs() + 1e-7).all()


@pytest.mark.parametrize("kind", KINDS)
def test_column_by_column_without_feedback_gives_the_nearest_levels(kind: Type) -> None:
    x = matrix()
    grid = fit(x, kind, importance(), CPU)
    by_column = grid.by_column()
    rounded = [by_column.round(j, x[:, j]) for j in range(x.shape[1])]
    q = torch.stack([level for level, _ in rounded], 1).to(torch.uint8)
    assert torch.equal(q, grid.levels(x))
    assert torch.equal(torch.stack([value for _, value in rounded], 1), grid.values(q))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Type.Q8_0])
def test_importance_moves_the_error_to_columns_that_count_less(kind: Type) -> None:
    x, counts = matrix(), importance()

    def error(weights: torch.Tensor) -> float:
        values = decoded(torch.from_numpy(encode("x", x, kind, weights)), kind)
        return float(((values - x).square() * counts).sum())

    assert error(counts) < 0.97 * error(torch.ones_like(counts)) < error(counts.flip(0))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Type.Q8_0])
@pytest.mark.parametrize("times", [1e3, 1e6, 1e9])
def test_a_column_that_counts_far_more_than_its_neighbours_is_exact(kind: Type, times: float) -> None:
    """As in the MLPs of real models: of one layer's 1,536 inputs one had half a million times the median square."""
    x, counts = matrix(), torch.ones(512)
    counts[333] = times

    def error(weights: torch.Tensor | None) -> float:
        values = decoded(torch.from_numpy(encode("x", x, kind, weights)), kind)
        return float((values - x)[:, 333].norm() / x[:, 333].norm())

    assert error(counts) < 0.5 * error(torch.ones(512))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_count_nothing_still_get_a_scale(kind: Type) -> None:
    x = matrix()

    def error(counts: torch.Tensor | None) -> float:
        values = decoded(torch.from_numpy(encode("x", x, kind, counts)), kind)
        return float((values - x)[:, :256].norm() / x[:, :256].norm())

    for counts in (importance(), torch.zeros(512), torch.full((512,), 1e-30)):
        counts[:256] = 0
        assert error(counts) < 1.25 * error(None)


@pytest.mark.parametrize("kind", KINDS)
def test_grid_of_many_chunks_is_the_grid_of_the_matrix(kind: Type) -> None:
    x = matrix(rows=600, columns=512)
    whole = fit(x, kind, importance(), CPU)
    lower = fit(x[300:], kind, importance(), CPU)
    assert torch.equal(whole.scale[300:], lower.scale)
    assert torch.equal(pack(whole, whole.levels(x))[300:], pack(lower, lower.levels(x[300:])))
    assert whole.scale.shape == whole.low.shape == (600, 512 // LAYOUTS[kind].block)
