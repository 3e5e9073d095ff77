"""ggml's own encoders and decoders, called on the same matrices as ours."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from qdpo.export.gguf.encode import decode, encode
from qdpo.export.gguf.fits import fit
from qdpo.export.gguf.packing import pack
from qdpo.model.grids import LAYOUTS

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python (pip install 'qdpo[verify]')")

KINDS = list(LAYOUTS)


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def gaussian(rows: int = 128, columns: int = 1536) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator) * 0.04


def counts(columns: int = 1536) -> torch.Tensor:
    """As those of a layer of SmolLM2: spread over orders of magnitude, one column half a million times the median."""
    drawn = torch.randn(columns, generator=torch.Generator().manual_seed(1)).mul(1.5).exp()
    drawn[700] = 5e5
    return drawn


def encoded_by(ggml: ctypes.CDLL, x: torch.Tensor, kind: Type, importance: torch.Tensor | None) -> torch.Tensor:
    stored = torch.zeros(gguf.quant_shape_to_byte_shape(tuple(x.shape), kind), dtype=torch.uint8)
    count = ctypes.c_int64
    weights = None if importance is None else ctypes.c_void_p(importance.data_ptr())
    ggml.ggml_quantize_chunk(
        ctypes.c_int(kind),
        *(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(stored.data_ptr())),
        *(count(0), count(x.shape[0]), count(x.shape[1])),
        weights,
    )
    return decode(stored.numpy(), kind, tuple(x.shape))


@pytest.mark.parametrize("kind", KINDS)
def test_ggml_decodes_what_the_grid_says(ggml: ctypes.CDLL, kind: Type) -> None:
    x = gaussian(16)
    grid = fit(x, kind, counts(), torch.device("cpu"))
    q = torch.randint(0, grid.layout.top + 1, x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    stored, decoded = pack(grid, q), torch.zeros_like(x)
    name = kind.name.lower().replace("_k", "_K")
    getattr(ggml, f"dequantize_row_{name}")(
        ctypes.c_void_p(stored.data_ptr()), ctypes.c_void_p(decoded.data_ptr()), ctypes.c_int64(x.numel())
    )
    assert torch.allclose(decoded, grid.values(q), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_within_2_percent_of_ggmls(ggml: ctypes.CDLL, kind: Type, weighted: bool) -> None:
    x, importance = gaussian(), counts() if weighted else None

    def error(values: torch.Tensor) -> float:
        square = (values - x).square()
        return float((square if importance is None else square * importance).double().sum().sqrt())

    ours = decode(encode("x", x, kind, importance), kind, tuple(x.shape))
    assert error(ours) <= 1.02 * error(encoded_by(ggml, x, kind, importance))
