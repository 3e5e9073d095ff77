"""Choosing the smallest type that is good enough, and comparing two artefacts."""

from __future__ import annotations

from pathlib import Path

import pytest
from export import families, toys

from qdpo.errors import InputMissingError, QdpoError
from qdpo.export.folder import write_safetensors
from qdpo.export.formats import Request
from qdpo.export.gguf.convert import GgufFile
from qdpo.export.gguf.format import write_gguf
from qdpo.export.pick import picked
from qdpo.export.source import load_run
from qdpo.export.verify.against import compare_artefacts
from qdpo.files import manifest_problems


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdpo.export.verify.gguf_target.has_llama_cpp", lambda: False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pick")
    base = toys.save_base(folder / "base", families.config("mistral", num_hidden_layers=2))
    peft = toys.add_adapter(toys.load_4bit(base), size=0.02)
    return toys.add_data(toys.save_run(folder / "run", base, peft), base)


def request(run: Path, out: Path, *quants: str) -> Request:
    return Request(load_run(run), out, "trained", quants=quants)


def test_the_smallest_that_passes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[str] = []
    finish = GgufFile.finish
    monkeypatch.setattr(GgufFile, "finish", lambda file: (converted.append(file.path.name), finish(file)))
    with picked(request(run, tmp_path / "out", "f16", "q4_k_m", "f32"), pairs=6) as (chosen, table):
        out = write_gguf(chosen)
    assert [(row["type"], row["verdict"]) for row in table] == [
        ("q4_k_m", "lost"),
        ("f16", "passed"),
        ("f32", "passed"),
    ]
    assert table[0]["projection"] < 0.9 < table[1]["projection"]
    assert chosen.quants == ("f16",)
    once = {name: converted.count(name) for name in converted}
    assert once == dict.fromkeys(["toy-F16.gguf", "toy-F32.gguf", "toy-Q4_K_M.gguf"], 2), "and of the bare base"
    assert [path.name for path in out.glob("*.gguf")] == ["toy-F16.gguf"]
    assert manifest_problems(out) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the trials are gone"


def test_none_passes(run: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(QdpoError, match=r"none of q4_k_m, q4_k_s keeps what was trained: lost even for q4_k_m"),
        picked(request(run, tmp_path / "out", "q4_k_m", "q4_k_s"), 4),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_against(run: Path, tmp_path: Path) -> None:
    gguf = write_gguf(request(run, tmp_path / "gguf", "f16", "q4_0"))
    folder = write_safetensors(request(run, tmp_path / "safetensors"))
    f16, q4 = gguf / "toy-F16.gguf", gguf / "toy-Q4_0.gguf"
    near = compare_artefacts(f16, folder, run, 6)
    far = compare_artefacts(q4, folder, run, 6)
    same = compare_artefacts(folder, folder, run, 6)
    assert same["kl"] == 0
    assert same["agreement"] == 1
    assert near["kl"] < 1e-4 < far["kl"]
    assert near["top1"] > far["top1"]
    assert far["engines"] == ["torch on dequantised tensors", "transformers"]
    with pytest.raises(InputMissingError, match="has 2 artefacts"):
        compare_artefacts(gguf, folder, run, 4)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputMissingError, match="is damaged"):
        compare_artefacts(f16, folder, run, 4)
