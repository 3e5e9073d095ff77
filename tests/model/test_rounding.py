"""NF4 on a CPU: the bits of bitsandbytes, in a fraction of its time."""

from __future__ import annotations

import time

import pytest
import torch
from bitsandbytes import functional

from qdpo.model import rounding
from qdpo.model.rounding import dequantize, quantize, values_of_nf4

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def reference(weight: torch.Tensor, blocksize: int, double_quant: bool) -> tuple[torch.Tensor, functional.QuantState]:
    """What bitsandbytes gives."""
    return functional.quantize_4bit(weight, blocksize=blocksize, compress_statistics=double_quant, quant_type="nf4")


def check_equal(weight: torch.Tensor, blocksize: int = 64, double_quant: bool = True) -> None:
    packed, state = quantize(weight, blocksize, double_quant)
    wanted, expected = reference(weight, blocksize, double_quant)
    assert packed.shape == wanted.shape
    assert torch.equal(packed, wanted)
    assert torch.equal(state.absmax, expected.absmax)
    assert (state.shape, state.dtype, state.blocksize, state.quant_type, state.nested) == (
        expected.shape,
        expected.dtype,
        expected.blocksize,
        expected.quant_type,
        expected.nested,
    )
    assert torch.equal(state.code, expected.code)
    if double_quant:
        assert torch.equal(state.offset, expected.offset)
        for name in ("absmax", "code"):
            assert torch.equal(getattr(state.state2, name), getattr(expected.state2, name))
        assert (state.state2.blocksize, state.state2.dtype) == (expected.state2.blocksize, expected.state2.dtype)
    values, wanted_values = dequantize(packed, state), functional.dequantize_4bit(wanted, expected)
    assert torch.equal(values.view(torch.uint8), wanted_values.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize(("shape", "blocksize"), [((96, 4096), 64), ((3, 65536), 64), ((130, 256), 128), ((64,), 64)])
def test_random_weights(dtype: torch.dtype, double_quant: bool, shape: tuple[int, ...], blocksize: int) -> None:
    torch.manual_seed(len(shape))
    check_equal((torch.randn(shape) * 0.02).to(dtype), blocksize, double_quant)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    weight = torch.randn(5, 131_072)
    try:
        torch.set_num_threads(threads)
        check_equal(weight)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_where_bitsandbytes_sends_them(dtype: torch.dtype) -> None:
    values = values_of_nf4()
    bounds = (values[:-1] + values[1:]) / 2
    near = torch.cat([bounds, torch.nextafter(bounds, torch.tensor(2.0)), torch.nextafter(bounds, torch.tensor(-2.0))])
    blocks = torch.zeros(8, 64)
    blocks[:, : len(near)] = near
    blocks[:, 60], blocks[:, 61] = 1.0, -1.0
    # scaled so that the product with the inverse rounds in both directions
    scales = torch.tensor([1.0, 3.0, 0.1, 7e-5, 1.7, 0.3333, 123.0, 1e-3]).unsqueeze(1)
    check_equal((blocks * scales).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_zeros_and_of_the_smallest_numbers(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    blocks = torch.zeros(6, 64)
    blocks[1] = -0.0
    blocks[2] = tiny * torch.linspace(-1, 1, 64)
    blocks[3] = tiny / 8 * torch.linspace(-1, 1, 64)  # below the normal numbers
    blocks[4, 3] = torch.finfo(dtype).max
    blocks[5, :2] = torch.tensor([1e-38, -2e-38])
    check_equal(blocks.to(dtype))
    check_equal(blocks.to(dtype), double_quant=False)


def test_weights_that_are_not_whole_blocks() -> None:
    torch.manual_seed(3)
    check_equal(torch.randn(7, 37))
    check_equal(torch.randn(3, 10))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_as_bitsandbytes_has_it(bad: float) -> None:
    weight = torch.randn(4, 128)
    weight[1, 5] = bad
    packed, state = quantize(weight, 64, False)
    wanted, expected = reference(weight, 64, False)
    assert torch.equal(packed, wanted)
    assert torch.equal(state.absmax.isfinite(), expected.absmax.isfinite())


def test_views_are_read_in_their_own_order() -> None:
    torch.manual_seed(1)
    check_equal(torch.randn(256, 128).T)


def test_it_is_several_times_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(1024, 4096) * 0.02).bfloat16()

    def seconds(call: object) -> float:
        begin = time.thread_time() if torch.get_num_threads() == 1 else time.process_time()
        call()  # type: ignore[operator]
        return (time.thread_time() if torch.get_num_threads() == 1 else time.process_time()) - begin

    ratios = []
    for _ in range(3):  # in turns, so that what else the machine does meets both
        ours = seconds(lambda: quantize(weight, 64, True))
        theirs = seconds(lambda: reference(weight, 64, True))
        ratios.append(theirs / ours)
    print(f"processor time of bitsandbytes / ours: {sorted(ratios)}")
    assert max(ratios) > 3


def test_the_fast_way_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "quantize_4bit", lambda *args, **kwargs: pytest.fail("bitsandbytes was asked"))
    quantize(torch.randn(4, 64), 64, True)
    with pytest.raises(pytest.fail.Exception):
        quantize(torch.randn(4, 63), 64, True)


def test_a_wrong_bound_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_of_nf4()
    values[7] += 1e-3
    monkeypatch.setattr(rounding, "values_of_nf4", lambda: values)
    with pytest.raises(AssertionError):
        check_equal(torch.randn(64, 64))
