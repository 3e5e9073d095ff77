"""The encoders: the bytes decode to what was encoded, as exactly as llama.cpp's own do."""

from __future__ import annotations

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from qdpo.errors import InputMissingError
from qdpo.export.gguf import kinds as files
from qdpo.export.gguf.encode import decode, encode, round_to_nearest
from qdpo.export.verify.readback import ERROR_LIMITS
from qdpo.model.grids import LAYOUTS

# Relative RMS error of llama.cpp's own encoder on Gaussian rows.
LLAMA_CPP = {Type.Q4_K: 0.0713, Type.Q5_K: 0.0361, Type.Q6_K: 0.01771}
LLAMA_CPP |= {Type.IQ4_NL: 0.0761, Type.IQ4_XS: 0.0767, Type.Q3_K: 0.1508, Type.Q2_K: 0.2971}
KINDS = list(LLAMA_CPP)


def round_trip(x: torch.Tensor, kind: Type) -> torch.Tensor:
    stored = round_to_nearest(x, kind, device=torch.device("cpu")).numpy()
    assert stored.shape == gguf.quant_shape_to_byte_shape(x.shape, kind)
    return torch.from_numpy(gguf.quants.dequantize(stored, kind))


def error(x: torch.Tensor, kind: Type) -> float:
    return float((round_trip(x, kind) - x).norm() / x.norm())


def gaussian(rows: int = 256, columns: int = 2048) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, columns) * torch.rand(rows, 1) * 0.04


@pytest.mark.parametrize("kind", KINDS)
def test_error_is_within_3_percent_of_llama_cpps(kind: Type) -> None:
    assert error(gaussian(), kind) < 1.03 * LLAMA_CPP[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_magnitude_does_not_matter(kind: Type) -> None:
    x = gaussian(8)
    assert error(x * 0.1, kind) == pytest.approx(error(x, kind), rel=0.05)
    assert error(x * 1e4, kind) == pytest.approx(error(x, kind), rel=0.02)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_order_of_magnitude_does_not_matter_with_an_importance(kind: Type) -> None:
    """Below 6e-5 float16 has few bits for a scale."""
    x, counts = gaussian(8), torch.randn(2048, generator=torch.Generator().manual_seed(1)).exp()

    def weighted(x: torch.Tensor) -> float:
        values = decode(encode("x", x, kind, counts), kind, tuple(x.shape))
        return float(((values - x).square() * counts).sum().sqrt() / (x.square() * counts).sum().sqrt())

    for times in (0.1, 1e4):
        assert weighted(x * times) == pytest.approx(weighted(x), rel=0.06)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3e-3, -3e-4, -700.0])
def test_blocks_of_one_value(kind: Type, value: float) -> None:
    x = torch.full((2, 512), value)
    assert torch.allclose(round_trip(x, kind), x, rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_comes_back_in_its_place(kind: Type) -> None:
    """One large weight among zeros, at every position of a super-block: the byte layout is right."""
    x = torch.eye(256) * torch.where(torch.arange(256) % 2 == 0, 1.0, -1.0)
    assert torch.allclose(round_trip(x, kind), x, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_one_sided_and_mixed_blocks(kind: Type) -> None:
    x = gaussian(16, 512)
    for rows in (x.abs(), -x.abs(), x + 0.05, torch.cat([x, torch.zeros_like(x)], 1)):
        assert error(rows, kind) < 1.3 * LLAMA_CPP[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_do_not_fit_are_refused(kind: Type) -> None:
    with pytest.raises(OverflowError, match="do not fit"):
        round_to_nearest(torch.full((1, 256), 3e38), kind, device=torch.device("cpu"))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kind", "most"), [(Type.Q4_1, 65504), (Type.Q5_1, 65504), (Type.Q4_0, 8 * 65504)])
def test_a_block_beyond_float16_is_refused_by_name(kind: Type, most: float, weighted: bool) -> None:
    importance = torch.ones(64) if weighted else None
    x = torch.zeros(2, 64)
    x[1, 40] = -0.8 * most
    assert torch.isfinite(decode(encode("x", x, kind, importance), kind, (2, 64))).all()
    x[1, 40] = -1.3 * most
    with pytest.raises(InputMissingError, match=f"blk.0.*{kind.name}"):
        encode("blk.0", x, kind, importance)


def test_every_type_has_a_limit_when_it_is_read_back() -> None:
    assert {kind.type.name for kind in files.KINDS.values()} <= set(ERROR_LIMITS)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_change_a_byte(kind: Type) -> None:
    x = gaussian(300, 1024)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = round_to_nearest(x, kind, device=torch.device("cpu"))
        torch.set_num_threads(2)
        two = round_to_nearest(x, kind, device=torch.device("cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_encodes_as_well_as_the_cpu(kind: Type) -> None:
    x = gaussian()
    stored = round_to_nearest(x, kind, device=torch.device("cuda")).numpy()
    decoded = torch.from_numpy(gguf.quants.dequantize(stored, kind))
    assert float((decoded - x).norm() / x.norm()) == pytest.approx(error(x, kind), rel=1e-3)
