"""Exporting again: other types of the same merge join the earlier ones, nothing of another merge is lost unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from export import toys, toys_gguf

from qdpo.errors import OutputError
from qdpo.export.folder import write_safetensors
from qdpo.export.formats import Request
from qdpo.export.gguf.format import write_gguf
from qdpo.export.gguf.lora import write_gguf_lora
from qdpo.export.output import RECORD
from qdpo.export.source import load_run
from qdpo.files import manifest_problems, sha256_file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return toys_gguf.make_run(tmp_path, toys.mistral())


def export(run: Path, *quants: str, merge_base: str = "trained") -> Path:
    return write_gguf(Request(load_run(run), run / "export" / "gguf", merge_base, quants=quants))


def files(out: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in out.glob("*.gguf")}


def test_other_types_join_the_earlier_ones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export(run, "q8_0", "f16")
    first = files(out)
    assert export(run, "q4_0") == out
    assert "toy-Q8_0.gguf, toy-F16.gguf of the earlier export stays" in " ".join(capsys.readouterr().err.split())
    second = files(out)
    assert second == {**first, "toy-Q4_0.gguf": second["toy-Q4_0.gguf"]}
    assert json.loads((out / RECORD).read_text())["files"] == {
        "toy-Q8_0.gguf": "q8_0",
        "toy-F16.gguf": "f16",
        "toy-Q4_0.gguf": "q4_0",
    }
    assert manifest_problems(out) == []
    assert [path.name for path in out.parent.iterdir()] == ["gguf"]


def test_the_same_type_is_written_anew(run: Path) -> None:
    out = export(run, "q8_0", "f16")
    before = (out / "toy-F16.gguf").stat()
    export(run, "f16")
    after = (out / "toy-F16.gguf").stat()
    assert before.st_ino != after.st_ino
    assert set(files(out)) == {"toy-F16.gguf", "toy-Q8_0.gguf"}


def test_types_of_another_merge_are_not_lost(run: Path) -> None:
    out = export(run, "q8_0", "f16")
    before = files(out)
    with pytest.raises(
        OutputError, match=r"holds toy-F16\.gguf, merged into the trained base .* would delete"
    ) as error:
        export(run, "q8_0", merge_base="original")
    assert "--out" in str(error.value.hint)
    assert files(out) == before
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "result": {"adapter_sha256": "another"}}))
    with pytest.raises(OutputError, match="would delete"):
        export(run, "q4_0")
    export(run, "q8_0", "f16")  # nothing of the earlier export is left out: it is replaced as a whole
    assert set(files(out)) == {"toy-F16.gguf", "toy-Q8_0.gguf"}


def test_a_damaged_earlier_type_does_not_get_a_new_seal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export(run, "q8_0", "f16")
    data = bytearray((out / "toy-F16.gguf").read_bytes())
    data[-1] ^= 1
    (out / "toy-F16.gguf").write_bytes(data)
    export(run, "q4_0")
    assert "toy-F16.gguf is damaged and is left out" in " ".join(capsys.readouterr().err.split())
    assert set(files(out)) == {"toy-Q8_0.gguf", "toy-Q4_0.gguf"}


def test_what_a_replaced_export_loses_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run / "export" / "lora"
    write_gguf_lora(Request(load_run(run), out, quants=("f32",)))
    write_gguf_lora(Request(load_run(run), out, quants=("f16",)))
    assert "is replaced; gone are toy-lora-F32.gguf" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in out.glob("*.gguf")] == ["toy-lora-F16.gguf"]
    again = run / "export" / "safetensors"
    write_safetensors(Request(load_run(run), again))
    write_safetensors(Request(load_run(run), again, dtype="bfloat16"))
    assert "gone are" not in capsys.readouterr().err, "the same files, written anew"
