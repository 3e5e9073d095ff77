"""`qdpo merge-export` on the command line: where it writes, what it refuses, what a kill leaves."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from export import toys

from qdpo import files
from qdpo.cli import verify as verify_verb
from qdpo.cli.main import main
from qdpo.export import folder, output
from qdpo.files import manifest_problems
from qdpo.model.source import Source
from qdpo.model.weights import weights_sha256


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `run`."""
    folder = tmp_path_factory.mktemp("toy")
    base = toys.save_base(folder / "base", toys.mistral())
    toys.save_run(folder / "run", base, toys.add_adapter(toys.load_4bit(base)))
    return folder


@pytest.fixture
def run(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy / "run", tmp_path / "run"))


def export_and_verify(run: Path, *more: str) -> int:
    return main(["merge-export", "--run", str(run), "--format", "safetensors", *more])


def export(run: Path, *more: str) -> int:
    return export_and_verify(run, "--no-verify", *more)


def verify(folder: Path) -> int:
    parser = argparse.ArgumentParser()
    verify_verb.add_arguments(parser)
    return verify_verb.run(parser.parse_args([str(folder)]))


def test_an_export_that_fails_verification_exits_with_1(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qdpo.export.verify import target  # the verifier keeps the right function

    assert target.rounded is folder.rounded
    toys.add_data(run, Path(json.loads((run / "run.json").read_text())["base"]["folder"]))
    monkeypatch.setattr(folder, "rounded", lambda name, tensor, dtype, hint="": (tensor * 1.01).to(dtype))
    assert export_and_verify(run) == 1
    out = run / "export" / "safetensors"
    assert json.loads((out / "verify.json").read_text())["verdict"] == "failed"
    assert verify(out) == 1
    monkeypatch.undo()
    assert export_and_verify(run) == 0
    assert verify(out) == 0
    assert verify(out / "model.safetensors") == 0, "a file stands for its folder"


def test_an_export_of_which_nothing_can_be_told_exits_with_2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_and_verify(run) == 2, "the run has no configuration and no data"
    assert "it cannot be told whether it keeps what was trained" in capsys.readouterr().err
    out = run / "export" / "safetensors"
    assert json.loads((out / "verify.json").read_text())["verdict"] == "cannot be told"
    assert verify(out) == 2
    assert "cannot be told" in capsys.readouterr().out
    (out / "model.safetensors").write_bytes(b"x")
    assert verify(out) == 1, "a failure counts more"


def test_an_unverified_export_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run) == 0
    assert "was not scored" in capsys.readouterr().err
    assert not (run / "export" / "safetensors" / "verify.json").exists()


def test_options_that_do_not_belong_to_a_format(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run, "--quant", "f16") == 64
    assert "--quant is for gguf" in capsys.readouterr().err
    assert main(["merge-export", "--run", str(run), "--format", "gguf", "--dtype", "float16"]) == 64
    assert "--dtype is for safetensors" in capsys.readouterr().err
    assert export(run, "--awq-layout", "autoawq") == 64
    assert "--awq-layout is for awq" in capsys.readouterr().err
    assert export(run, "--pick") == 64
    assert "--pick chooses among GGUF types" in capsys.readouterr().err
    assert export(run, "--pairs", "0") == 64
    assert not (run / "export").exists()


def test_awq_without_its_extra_names_the_install_command(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "llmcompressor" else found(name, *a)
    )
    assert main(["merge-export", "--run", str(run), "--format", "awq"]) == 69
    assert "pip install 'qdpo[awq]'" in capsys.readouterr().err
    assert not (run / "export").exists()


def test_writes_into_the_run_and_prints_the_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run) == 0
    out = run / "export" / "safetensors"
    assert capsys.readouterr().out.strip() == str(out)
    assert manifest_problems(out) == []
    assert list(run.glob("export/.*")) == []


def test_a_second_export_replaces_the_first_whole(run: Path) -> None:
    assert export(run) == 0
    assert export(run, "--merge-base", "original", "--dtype", "bfloat16") == 0
    record = json.loads((run / "export" / "safetensors" / "export.json").read_text())
    assert (record["merge_base"], record["dtype"]) == ("original", "bfloat16")
    assert manifest_problems(run / "export" / "safetensors") == []


def test_foreign_files_are_never_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    assert export(run, "--out", str(mine)) == 73
    assert "not an export of qdpo" in capsys.readouterr().err
    out = run / "export" / "safetensors"
    assert export(run) == 0
    (out / "verify.json").write_text("{}")  # qdpo's own, written after the manifest
    assert export(run) == 0
    (out / "notes.txt").write_text("mine")
    assert export(run) == 73
    assert "first: notes.txt" in capsys.readouterr().err
    assert (mine / "thesis.tex").read_text() == "years of work"
    assert (out / "notes.txt").read_text() == "mine"


def test_disk_is_checked_before_the_first_byte(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "free_bytes", lambda path: output.SPARE_BYTES + 1000)
    assert export(run) == 74
    assert "are free" in capsys.readouterr().err
    assert not (run / "export").exists()


def test_full_disk_halfway_leaves_the_old_export(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert export(run, "--merge-base", "original") == 0

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_manifest", full)
    assert export(run) == 74
    monkeypatch.undo()
    out = run / "export" / "safetensors"
    assert json.loads((out / "export.json").read_text())["merge_base"] == "original"
    assert manifest_problems(out) == []
    assert [p.name for p in out.parent.iterdir()] == ["safetensors"]


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        ("no run.json", 66, "run.json is missing"),
        ("run.json is not JSON", 66, "cannot be read"),
        ("no adapter", 66, "no adapter/ yet"),
        ("no quantization", 66, "does not say how the base was quantised"),
        ("other weights", 66, "not those that were trained on"),
        ("no base", 66, "is not at /no/such/base any more"),
    ],
)
def test_a_user_mistake_is_one_message(
    run: Path, damage: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "run.json"
    record = json.loads(path.read_text())
    if damage == "no run.json":
        path.unlink()
    elif damage == "run.json is not JSON":
        path.write_text("{")
    elif damage == "no adapter":
        shutil.rmtree(run / "adapter")
    elif damage == "no quantization":
        path.write_text(json.dumps({**record, "quantization": {}}))
    elif damage == "other weights":
        path.write_text(json.dumps({**record, "base": {**record["base"], "weights_sha256": "0" * 64}}))
    elif damage == "no base":
        path.write_text(json.dumps({**record, "base": {"name": "/no/such/base", "folder": "/no/such/base"}}))
    assert export(run) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_the_base_is_recognised_by_its_weights(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    folder = Path(record["base"]["folder"])
    digest = weights_sha256(Source("toy", folder, None))
    (run / "run.json").write_text(json.dumps({**record, "base": {**record["base"], "weights_sha256": digest}}))
    assert export(run) == 0


def test_a_changed_adapter_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_manifest(run / "adapter")
    assert export(run) == 0
    weights = run / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert export(run) == 66
    assert "adapter_model.safetensors does not match its SHA-256" in capsys.readouterr().err


def test_help_offers_what_is_built_and_never_4_bit_merging(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge-export", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--merge-base {trained,original}" in text
    assert "erases the adapter" in " ".join(text.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        assert main(["merge-export", "--run", "x", "--format", "safetensors", "--merge-base", "4bit"]) == 64


def test_30_kills_leave_nothing_or_a_whole_export(run: Path) -> None:
    """Children of one warm process export in a loop and are killed at random moments."""
    script = textwrap.dedent("""
        import os, signal, sys, torch
        torch.set_num_threads(1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the killed are reaped
        import bitsandbytes, qdpo.api.exporting, qdpo.export.folder  # what each child would spend its time on
        from qdpo.cli.main import main
        args = ["merge-export", "--run", sys.argv[1], "--format", "safetensors", "--no-verify"]
        sys.stderr = open(os.devnull, "w")
        for line in sys.stdin:
            if (child := os.fork()) == 0:
                while True:
                    main(args)
            print(child, flush=True)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    out, chance, whole = run / "export" / "safetensors", random.Random(0), 0
    for number in range(30):
        process.stdin.write("go\n")
        process.stdin.flush()
        while not (line := process.stdout.readline().strip()).isdigit():
            assert process.poll() is None  # what children print of their own goes to the same pipe
            assert line or process.poll() is None
        time.sleep(chance.uniform(0.005, 0.25))
        os.kill(int(line), signal.SIGKILL)
        time.sleep(0.05)
        aside = out.with_name(".staging-old-safetensors")
        present = out if out.exists() else aside
        if present.exists():
            whole += 1
            assert manifest_problems(present) == [], f"after kill {number}"
    process.stdin.close()
    process.terminate()
    process.wait()
    assert whole > 0
    assert export(run) == 0
    assert [p.name for p in out.parent.iterdir()] == ["safetensors"], "the next export sweeps what kills left"
