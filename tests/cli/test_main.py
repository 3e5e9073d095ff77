"""The frame of the command line: speed, exit codes, and messages instead of tracebacks."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import qdpo
from qdpo.cli import main as cli
from qdpo.errors import BusyError, ConfigError, DataError, QdpoError

ENV = {**os.environ, "PYTHONPATH": str(Path(qdpo.__file__).parents[1])}
ENV.pop("QDPO_TRACEBACK", None)


def qdpo_command(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qdpo", *args], env={**ENV, **env}, capture_output=True, text=True, timeout=60
    )


def verb(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Put a verb `try` into the table whose module is made of `run`."""

    def add_arguments(parser):
        parser.add_argument("--count", type=int, default=1)
        parser.add_argument("--colour", choices=["red", "blue"])

    module = SimpleNamespace(HELP="Try it out.", add_arguments=add_arguments, run=run)
    monkeypatch.setitem(sys.modules, "a_verb_for_tests", module)
    monkeypatch.setattr(cli, "VERBS", {**cli.VERBS, "try": cli.Verb("a_verb_for_tests", "try it")})


def fails_with(error: BaseException):
    def run(args: object) -> int:
        raise error

    return run


def test_help_lists_every_verb_fast_and_without_heavy_imports():
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        result = qdpo_command("--help")
        seconds.append(time.monotonic() - started)
        assert result.returncode == 0
    assert min(seconds) < 0.4
    for name, entry in cli.VERBS.items():
        assert name in result.stdout
        assert entry.summary in result.stdout
    code = (
        "import sys; from qdpo.cli.main import main; main(['--help']);"
        "heavy = {'torch', 'transformers', 'pydantic', 'rich', 'yaml', 'numpy'} & set(sys.modules);"
        "verbs = [m for m in sys.modules if m.startswith('qdpo.') and m not in"
        " ('qdpo.cli', 'qdpo.cli.main', 'qdpo.console', 'qdpo.errors', 'qdpo.foreign', 'qdpo.libraries')];"
        "sys.exit(str((heavy, verbs)) if heavy or verbs else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_version():
    result = qdpo_command("--version")
    assert (result.returncode, result.stdout) == (0, f"qdpo {qdpo.__version__}\n")


def test_no_verb_prints_the_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]):
    assert cli.main([]) == 64
    assert "verbs:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["trian"], ["there is no verb `trian`", "did you mean `qdpo train`?"]),
        (["zzz"], ["there is no verb `zzz`", "verbs: train, init, plan, data"]),
        (["--verison"], ["--verison", "did you mean `--version`?"]),
        (["try", "--count", "many"], ["--count", "many", "see `qdpo try --help`"]),
        (["try", "--count"], ["--count", "expected one argument"]),
        (["try", "--cuont", "3"], ["--cuont", "did you mean `--count`?"]),
        (["try", "--cou", "3"], ["--cou"]),
        (["try", "--colour", "green"], ["green", "red"]),
        (["try", "something"], ["something"]),
    ],
)
def test_usage_errors(argv, parts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    verb(monkeypatch, lambda args: 0)
    assert cli.main(argv) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "\nhint: " in said.err
    for part in parts:
        assert part in said.err


def test_a_verb_gets_its_arguments_and_gives_the_exit_code(monkeypatch: pytest.MonkeyPatch):
    verb(monkeypatch, lambda args: args.count)
    assert cli.main(["try", "--count", "3"]) == 3


def test_the_help_of_a_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    verb(monkeypatch, lambda args: 0)
    assert cli.main(["try", "--help"]) == 0
    said = capsys.readouterr().out
    assert "Try it out." in said
    assert "--count" in said


@pytest.mark.parametrize(
    "error", [DataError("bad rows", "fix them"), ConfigError("bad"), BusyError("busy"), QdpoError("x")]
)
def test_an_explained_failure(error: QdpoError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    verb(monkeypatch, fails_with(error))
    assert cli.main(["try"]) == error.exit_code
    hint = f"hint: {error.hint}\n" if error.hint else ""
    assert capsys.readouterr().err == f"error: {error.message}\n{hint}"


def test_an_unexpected_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("QDPO_TRACEBACK", raising=False)
    verb(monkeypatch, fails_with(ZeroDivisionError("a [bold]\nthing")))
    assert cli.main(["try"]) == 70
    said = capsys.readouterr().err
    assert said.startswith("error: internal error: ZeroDivisionError: a [bold] thing\nhint: ")
    assert "QDPO_TRACEBACK=1" in said
    assert "Traceback" not in said
    monkeypatch.setenv("QDPO_TRACEBACK", "1")
    assert cli.main(["try"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_explained_failure_shows_its_traceback_on_request():
    quiet = qdpo_command("presets", "show", "nothing-like-it")
    assert quiet.returncode == 78
    assert "Traceback" not in quiet.stderr
    loud = qdpo_command("presets", "show", "nothing-like-it", QDPO_TRACEBACK="1")
    assert loud.returncode == 78
    assert "Traceback (most recent call last)" in loud.stderr
    assert quiet.stderr in loud.stderr


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    verb(monkeypatch, fails_with(KeyboardInterrupt()))
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [sys.executable, "-m", "qdpo", "presets", "show", "quickstart"],
        env=ENV,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(writer)
        _, said = process.communicate(timeout=60)
    assert said == ""
    assert process.returncode == 141
