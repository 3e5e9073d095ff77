"""Second moments of inputs: what the kept factor says is what the inputs were, and a file gives it back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qdpo.errors import InputMissingError
from qdpo.model.moments import About, Moments, moment_of, save_moments

TOKENS, COLUMNS, SHARED = 600, 96, 6


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    """A few strong common directions, as activations have them, one huge column, and noise."""
    torch.manual_seed(0)
    common = torch.randn(TOKENS, SHARED) @ torch.randn(SHARED, COLUMNS)
    x = common + 0.2 * torch.randn(TOKENS, COLUMNS)
    x[:, 5] *= 30
    return x


def test_the_factor_holds_the_strong_directions_and_the_diagonal_is_exact(inputs: torch.Tensor) -> None:
    whole = inputs.T @ inputs / TOKENS
    moment = moment_of(inputs, torch.empty(0, COLUMNS), rank=16)
    kept = torch.diag(moment.rest) + moment.factor @ moment.factor.T
    torch.testing.assert_close(moment.diagonal, whole.diagonal(), rtol=1e-4, atol=1e-4)
    assert (kept - whole).norm() < 0.01 * whole.norm()
    diagonal_only = torch.diag(whole.diagonal())
    assert (diagonal_only - whole).norm() > 0.05 * whole.norm(), "else the factor would not be needed"


def test_the_factor_alone_says_what_the_adapter_reads(inputs: torch.Tensor) -> None:
    whole = inputs.T @ inputs / TOKENS
    directions = torch.randn(3, COLUMNS)
    seen = directions @ whole
    factor = moment_of(inputs, directions, rank=8).factor
    blind = moment_of(inputs, torch.empty(0, COLUMNS), rank=8).factor
    assert (directions @ factor @ factor.T - seen).norm() < 1e-4 * seen.norm()
    assert (directions @ blind @ blind.T - seen).norm() > 10 * (directions @ factor @ factor.T - seen).norm()


def test_emphasis_counts_the_adapters_directions_more_and_nothing_less(inputs: torch.Tensor) -> None:
    moment = moment_of(inputs, torch.empty(0, COLUMNS), rank=16)
    direction = torch.randn(3, COLUMNS)
    louder = moment.emphasised(direction, 10.0)
    change = torch.randn(5, COLUMNS)
    assert louder.inner(change, change) >= moment.inner(change, change)
    # x^T H' y = 11 x^T H y for x and y in the span of the directions
    within = torch.randn(5, 3) @ direction
    assert louder.inner(within, within) == pytest.approx(11 * moment.inner(within, within), rel=1e-3)
    assert moment.emphasised(direction, 0.0) is moment


def test_a_file_gives_them_back(inputs: torch.Tensor, tmp_path: Path) -> None:
    moments = {"q": moment_of(inputs, torch.empty(0, COLUMNS), 16), "o": moment_of(inputs * 1e4, torch.eye(3, COLUMNS))}
    path = tmp_path / "moments.safetensors"
    save_moments(path, moments, {"q.weight": "q", "k.weight": "q", "o.weight": "o"}, About("ab", TOKENS, "texts"))
    found = Moments(path)
    assert found.names == {"q.weight", "k.weight", "o.weight"}
    assert found.about == About("ab", TOKENS, "texts")
    assert found.of("embedding.weight") is None
    for name, place in (("k.weight", "q"), ("o.weight", "o")):
        read = found.of(name)
        assert read is not None
        torch.testing.assert_close(read.diagonal, moments[place].diagonal, rtol=2e-3, atol=0)
        assert (read.factor - moments[place].factor).norm() < 1e-3 * moments[place].factor.norm()


def test_a_damaged_file_is_told_of_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "moments.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all")
    with pytest.raises(InputMissingError, match="does not hold moments") as caught:
        Moments(tmp_path / "moments.safetensors")
    assert "--rounding feedback" in str(caught.value.hint)
