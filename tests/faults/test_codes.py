"""Every exit code that docs/reliability.md lists, each from a real command; and none is missing from the list."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.mounts import mounted
from faults.runs import World, steps_saved, wait_for
from training.tiny import write_rows

from qdpo import errors

TABLE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
TESTED_ELSEWHERE = {71: "tests/faults/test_memory.py"}


def documented() -> dict[int, str]:
    """The codes in the table of the documentation."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", TABLE.read_text(), re.M)
    return {int(code): meaning for code, meaning in rows}


def test_every_code_is_documented_and_walked() -> None:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.QdpoError)]
    ours = {kind.exit_code for kind in classes}
    assert ours <= documented().keys()
    assert documented().keys() == WALKED.keys() | TESTED_ELSEWHERE.keys()


def done(here: World, tmp: Path) -> int:
    return here.server.run("presets")[0]


def not_good_enough(here: World, tmp: Path) -> int:
    run, export = finished(here, tmp), tmp / "export"
    command = ("merge-export", "--run", run, "--format", "safetensors", "--no-verify", "--out", export)
    code, said = here.server.run(*command)
    assert code == 0, said
    weights = next(export.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return here.server.run("verify", export, "--run", run)[0]


def not_scored(here: World, tmp: Path) -> int:
    """Whole, but without the configuration that says which pairs to score it on."""
    run, export = finished(here, tmp), tmp / "export"
    (run / "config.yaml").unlink()
    command = ("merge-export", "--run", run, "--format", "safetensors", "--no-verify", "--out", export)
    code, said = here.server.run(*command)
    assert code == 0, said
    return here.server.run("verify", export, "--run", run)[0]


def finished(here: World, tmp: Path) -> Path:
    process = here.train(tmp / "run", "train.max_steps=2")
    assert process.wait() == 0, process.said()
    return tmp / "run"


def usage(here: World, tmp: Path) -> int:
    return here.server.run("train", "--frobnicate")[0]


def data(here: World, tmp: Path) -> int:
    write_rows(tmp / "bad.jsonl", [{"question": "a", "answer": "b"}])
    return here.train(tmp / "run", f"data.name={tmp}/bad.jsonl").wait()


def missing(here: World, tmp: Path) -> int:
    return here.train(tmp / "run", f"model.name={tmp}/nothing").wait()


def unavailable(here: World, tmp: Path) -> int:
    return here.train(tmp / "run", "model.name=owner/not-in-the-cache").wait()


def training(here: World, tmp: Path) -> int:
    return here.train(tmp / "run", "train.learning_rate=1.0e+30", "train.max_grad_norm=0.0", "train.max_steps=9").wait()


def output(here: World, tmp: Path) -> int:
    (tmp / "thesis.tex").write_text("mine")
    return here.train(tmp).wait()


def disk(here: World, tmp: Path) -> int:
    with mounted(tmp / "disk", "64k") as small:
        return here.train(small.folder / "run").wait()


def busy(here: World, tmp: Path) -> int:
    first = here.train(tmp / "run", "train.max_steps=100000")
    wait_for(lambda: (tmp / "run" / "config.yaml").is_file(), first)
    code = here.resume(tmp / "run").wait()
    first.send(signal.SIGKILL)
    assert first.wait() == 137
    return code


def configuration(here: World, tmp: Path) -> int:
    return here.train(tmp / "run", "train.learning_rat=1").wait()


def stopped_by(number: signal.Signals, here: World, tmp: Path) -> int:
    process = here.train(tmp / "run", "train.max_steps=100000")
    wait_for(lambda: steps_saved(tmp / "run") != [], process)
    process.send(number)
    return process.wait()


def interrupted(here: World, tmp: Path) -> int:
    return stopped_by(signal.SIGINT, here, tmp)


def terminated(here: World, tmp: Path) -> int:
    return stopped_by(signal.SIGTERM, here, tmp)


def closed_pipe(here: World, tmp: Path) -> int:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "qdpo", "data", str(here.tiny.train), "--preset", str(here.tiny.preset)]
    code = subprocess.run([*command, "--preview", "9"], stdout=writer, stderr=subprocess.DEVNULL, timeout=60).returncode
    os.close(writer)
    return code


WALKED = {
    0: done,
    1: not_good_enough,
    2: not_scored,
    64: usage,
    65: data,
    66: missing,
    69: unavailable,
    70: training,
    73: output,
    74: disk,
    75: busy,
    78: configuration,
    130: interrupted,
    141: closed_pipe,
    143: terminated,
}


@pytest.mark.parametrize("code", WALKED)
def test_a_real_command_ends_with(code: int, here: World, tmp_path: Path) -> None:
    assert WALKED[code](here, tmp_path) == code
