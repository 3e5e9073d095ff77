"""Importance matrices: llama.cpp's files are read, ours can be read, and a damaged or foreign one is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from materials import MATERIAL, STORIES
from transformers import AutoModelForCausalLM, AutoTokenizer

from qdpo.errors import InputMissingError
from qdpo.export.gguf.imatrix import Imatrix, checked, quantize_keys, read_imatrix, write_imatrix

WIDTHS = {"token_embd.weight": 64, "blk.0.attn_q.weight": 64, "blk.0.ffn_down.weight": 96}


def some(**changes: torch.Tensor) -> Imatrix:
    generator = torch.Generator().manual_seed(0)
    means = {name: torch.rand(width, generator=generator) for name, width in WIDTHS.items() if name.startswith("blk")}
    return Imatrix({**means, **changes}, ["chat.jsonl", "prose.txt"], 7, 512)


def written(path: Path, imatrix: Imatrix) -> Path:
    write_imatrix(path, imatrix)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    before = some()
    after = read_imatrix(written(tmp_path / "i.gguf", before))
    assert after.means.keys() == before.means.keys()
    assert all(torch.allclose(after.means[name], mean, rtol=1e-6) for name, mean in before.means.items())
    assert (after.datasets, after.chunks, after.chunk_size) == (["chat.jsonl", "prose.txt"], 7, 512)


def test_the_file_is_laid_out_as_llama_imatrix_does(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(written(tmp_path / "i.gguf", some()))
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["chat.jsonl", "prose.txt"],
        "imatrix.chunk_count": 7,
        "imatrix.chunk_size": 512,
    }
    shapes = {tensor.name: list(tensor.shape) for tensor in reader.tensors}
    assert shapes["blk.0.ffn_down.weight.in_sum2"] == [96, 1]
    assert shapes["blk.0.ffn_down.weight.counts"] == [1, 1]
    assert {tensor.data.dtype for tensor in reader.tensors} == {np.dtype(np.float32)}


def means_of_stories260k(ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """The mean square of each column's inputs, by the GGUF name of its matrix, as torch computes it."""
    model = AutoModelForCausalLM.from_pretrained(STORIES)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    found: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor]], None]:
        return lambda _, inputs: found.setdefault(name, []).append(inputs[0].detach().reshape(-1, inputs[0].shape[-1]))

    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            module.register_forward_pre_hook(keep(f"{names.get_name(path)}.weight"))
    with torch.no_grad():
        model(torch.tensor(ids))
    return {name: torch.cat(inputs).square().mean(0) for name, inputs in found.items()}


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_files_of_llama_imatrix_hold_what_torch_computes(form: str) -> None:
    """On the same text: each piece of 64 tokens begins with BOS, in the place of its first token."""
    folder = MATERIAL / "imatrix"
    found = read_imatrix(folder / f"stories260K.imatrix.{form}")
    ids = AutoTokenizer.from_pretrained(STORIES).encode((folder / "stories.txt").read_text())
    pieces = [[1, *ids[i + 1 : i + 64]] for i in range(0, len(ids) - 63, 64)]
    expected = means_of_stories260k(pieces)
    assert found.chunks == len(pieces) > 1
    assert list(found.datasets) == ["stories.txt"]
    assert found.means.keys() == expected.keys()
    for name, mean in expected.items():
        assert torch.allclose(found.means[name], mean, rtol=1e-3, atol=1e-3 * float(mean.mean())), name


def dat(means: dict[str, list[float]], calls: int, tail: bytes) -> bytes:
    """The older form, as llama.cpp's `save_imatrix_legacy` lays it out."""
    entries = [
        struct.pack("<i", len(name)) + name.encode() + struct.pack(f"<ii{len(mean)}f", calls, len(mean), *mean)
        for name, mean in means.items()
    ]
    return struct.pack("<i", len(means)) + b"".join(entries) + tail


@pytest.mark.parametrize("tail", [b"", struct.pack("<ii", 5, 8) + b"wiki.txt"])
def test_the_older_form_is_read(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(dat({"blk.0.attn_q.weight": [2.0, 4.0], "blk.0.attn_k.weight": [0.0, 6.0]}, 2, tail))
    found = read_imatrix(path)
    assert {name: mean.tolist() for name, mean in found.means.items()} == {
        "blk.0.attn_q.weight": [1.0, 2.0],
        "blk.0.attn_k.weight": [0.0, 3.0],
    }
    assert (list(found.datasets), found.chunks) == ((["wiki.txt"], 5) if tail else ([], 0))


def test_columns_count_alike_where_nothing_was_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "i.gguf", some())
    whole = path.read_bytes()
    counted = np.float32(7 * 512).tobytes()
    path.write_bytes(whole.replace(counted, np.float32(0).tobytes()))
    assert all((mean == 1).all() for mean in read_imatrix(path).means.values())


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_a_damaged_file_is_refused_wherever_it_ends(tmp_path: Path, form: str) -> None:
    path = written(tmp_path / "i.gguf", some())
    if form == "dat":
        path.write_bytes(dat({"blk.0.attn_q.weight": [2.0] * 64}, 2, struct.pack("<ii", 5, 8) + b"wiki.txt"))
    whole = path.read_bytes()
    read_imatrix(path)
    last = len(whole) - (32 if form == "gguf" else 1)  # a GGUF ends with padding
    tail = len(whole) - 16  # which an older file need not have
    for length in [0, 3, 4, 5, 11, *range(16, last, 41), last]:
        if form == "gguf" or length != tail:
            path.write_bytes(whole[:length])
            with pytest.raises(InputMissingError, match=r"cannot be read as an importance matrix"):
                read_imatrix(path)


def test_what_is_no_importance_matrix_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputMissingError, match=r"GGUF file without imatrix.datasets"):
        read_imatrix(tmp_path / "model.gguf")
    (tmp_path / "text").write_text("Once upon a time there was a little girl.")
    with pytest.raises(InputMissingError, match="as the number of matrices"):
        read_imatrix(tmp_path / "text")
    with pytest.raises(InputMissingError, match="No such file"):
        read_imatrix(tmp_path / "nowhere")
    for wrong in (float("nan"), float("inf"), -1.0):
        path = written(tmp_path / "i.gguf", some(**{"blk.0.attn_q.weight": torch.full((64,), wrong)}))
        with pytest.raises(InputMissingError, match=r"blk.0.attn_q.weight has values that are no mean squares"):
            read_imatrix(path)


def test_only_the_models_own_matrix_is_taken() -> None:
    imatrix = some()
    assert checked(imatrix, WIDTHS, "i.gguf").keys() == imatrix.means.keys()
    with pytest.raises(InputMissingError, match=r"i.gguf lacks 1 of the model's 3 matrices \(first: blk.1.attn_q"):
        checked(imatrix, WIDTHS | {"blk.1.attn_q.weight": 64}, "i.gguf")
    fewer = {name: width for name, width in WIDTHS.items() if "ffn" not in name}
    with pytest.raises(InputMissingError, match=r"1 of 2 matrices in i.gguf are not the model's"):
        checked(imatrix, fewer, "i.gguf")
    with pytest.raises(InputMissingError, match=r"1 of 2 matrices .* 96 instead of 128 columns"):
        checked(imatrix, WIDTHS | {"blk.0.ffn_down.weight": 128}, "i.gguf")
    head = some(**{"output.weight": torch.ones(64)})
    assert "output.weight" in checked(head, WIDTHS | {"output.weight": 64}, "i.gguf")
    assert "output.weight" not in checked(head, WIDTHS, "i.gguf")


def test_a_quantised_file_says_what_was_used() -> None:
    assert quantize_keys(some(), "base.imatrix.gguf") == {
        "quantize.imatrix.file": "base.imatrix.gguf",
        "quantize.imatrix.dataset": "chat.jsonl",
        "quantize.imatrix.entries_count": 2,
        "quantize.imatrix.chunks_count": 7,
    }
    assert quantize_keys(Imatrix(some().means), "i.dat").keys() == {
        "quantize.imatrix.file",
        "quantize.imatrix.entries_count",
    }
