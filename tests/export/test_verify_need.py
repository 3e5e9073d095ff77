"""A verification in little memory: what is kept where, what is said before, what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export import families, toys

from qdpo.cli.main import main
from qdpo.errors import DiskError, MemoryShortageError
from qdpo.export.folder import write_safetensors
from qdpo.export.formats import Request
from qdpo.export.gguf.format import write_gguf
from qdpo.export.source import load_run
from qdpo.export.verify.against import compare_artefacts
from qdpo.export.verify.room import Room
from qdpo.export.verify.run import verify_export

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdpo.export.verify.gguf_target.has_llama_cpp", lambda: False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("need")
    base = toys.save_base(folder / "base", families.config("mistral", num_hidden_layers=2))
    peft = toys.add_adapter(toys.load_4bit(base), size=0.1)
    return toys.add_data(toys.save_run(folder / "run", base, peft), base)


@pytest.fixture
def export(run: Path, tmp_path: Path) -> Path:
    return write_gguf(Request(load_run(run), tmp_path / "gguf", "trained", quants=("f16",)))


def parity(verdict: dict[str, Any]) -> dict[str, Any]:
    return dict(verdict["artefacts"][0]["parity"])


def checks(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in verdict["artefacts"][0]["checks"]}


# --- room ------------------------------------------------------------------------------------------------------------


def test_what_is_more_than_may_be_held_lies_in_files(tmp_path: Path) -> None:
    room = Room(tmp_path, held=1000)
    held = room.take(10, 10, torch.float32, CPU)
    filed = [room.take(10, 20, torch.float32, CPU) for _ in range(2)]
    mapped = Path("/proc/self/maps").read_text()
    assert mapped.count(str(tmp_path)) == 2, "800 bytes each, of which 600 are left"
    assert not list(tmp_path.iterdir()), "the files have no names: nothing is left of a process that is killed"
    for number, tensor in enumerate([held, *filed]):
        tensor.fill_(number)
    assert [float(tensor.mean()) for tensor in (held, *filed)] == [0, 1, 2]


def test_a_full_disk_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DiskError, match="the disk is full"):
        Room(tmp_path, held=0).take(10, 10, torch.float32, CPU)


def test_scores_from_files_are_those_from_memory(run: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = verify_export(export, run, 4)
    monkeypatch.setattr("qdpo.export.verify.run.Room", lambda folder: Room(folder, held=0))
    assert parity(verify_export(export, run, 4)) == parity(before)


def test_pieces_do_not_change_the_scores(run: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = parity(verify_export(export, run, 4))
    monkeypatch.setattr("qdpo.export.verify.scorers.CHUNK_BYTES", 4 * toys.VOCABULARY * 3)
    after = parity(verify_export(export, run, 4))
    for model in before:
        assert after[model]["margin"] == pytest.approx(before[model]["margin"], abs=1e-5)
        assert after[model]["kl"] == pytest.approx(before[model]["kl"], abs=1e-6)
        assert after[model]["tokens"] == before[model]["tokens"]


# --- models that cannot be streamed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["safetensors", "gguf"])
def test_a_model_that_is_loaded_whole_gets_the_same_scores(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    request = Request(load_run(run), tmp_path / format, "trained", quants=("f16",) if format == "gguf" else ())
    out = write_gguf(request) if format == "gguf" else write_safetensors(request)
    streamed = verify_export(out, run, 4)
    assert "loaded whole" not in capsys.readouterr().err
    monkeypatch.setattr("qdpo.export.verify.run.why_not_streamed", lambda *_: "it has no layers")
    whole = verify_export(out, run, 4)
    assert "loaded whole to be scored: it has no layers" in capsys.readouterr().err
    assert parity(whole) == parity(streamed)
    assert whole["artefacts"][0]["samples"] == streamed["artefacts"][0]["samples"]


# --- samples ---------------------------------------------------------------------------------------------------------


def test_answers_that_take_too_long_are_left_out_and_said(
    run: Path, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = verify_export(export, run, 4)
    assert "answers" not in checks(verdict)
    assert len(verdict["artefacts"][0]["samples"]) == 3
    monkeypatch.setattr("qdpo.export.verify.yardstick.ANSWER_SECONDS", 0.0)
    verdict = verify_export(export, run, 4)
    assert verdict["artefacts"][0]["samples"] == []
    assert checks(verdict)["answers"]["passed"] is None
    assert "3 answers of 24 tokens by the trained model would take about" in checks(verdict)["answers"]["detail"]
    assert verdict["verdict"] == "passed"
    assert "answers | not run" in (export / "README.md").read_text()


# --- said before it begins -------------------------------------------------------------------------------------------


def test_too_little_memory_is_said_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gguf"
    monkeypatch.setattr("qdpo.export.verify.need.available_memory", lambda: 100 << 20)
    arguments = ["merge-export", "--run", str(run), "--format", "gguf", "--quant", "f16", "--out", str(out)]
    assert main(arguments) == MemoryShortageError.exit_code
    assert "verifying the export needs 1.2 GiB of memory, 0.6 GiB are there" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "--no-verify"]) == 0
    with pytest.raises(MemoryShortageError, match="needs") as raised:
        verify_export(out, run, 4)
    assert "--no-verify" in raised.value.hint
    with pytest.raises(MemoryShortageError):
        compare_artefacts(out, out, run, 4)


def test_a_long_verification_names_the_pairs_that_would_be_quick(
    run: Path, export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verify_export(export, run, 4)
    assert "models are scored on" not in capsys.readouterr().err, "what is quick needs no words"
    monkeypatch.setattr("qdpo.export.verify.need._speed", lambda device: 1e5)
    verify_export(export, run, 4)
    told = " ".join(capsys.readouterr().err.split())
    assert "warning: 4 models are scored on 4 pairs" in told
    assert "--pairs 1 would take 30 min 00 s, --no-verify leaves it out" in told


def test_the_record_has_no_new_columns(run: Path, export: Path) -> None:
    verify_export(export, run, 4)
    record = json.loads((export / "verify.json").read_text())
    assert set(record) == {"schema", "qdpo", "created", "format", "merge_base", "verdict", "artefacts"}
    assert record["schema"] == 2
    (artefact,) = record["artefacts"]
    assert set(artefact) == {"name", "kind", "verdict", "pairs", "checks", "findings", "measures", "parity", "samples"}
    assert set(artefact["parity"]) == {"base", "trained", "rounded base", "exported"}
    assert set(artefact["measures"]) == {"projection", "divergence", "preference", "text", "answers"}
