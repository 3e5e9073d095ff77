"""`qdpo push` against a hub on loopback, by the real client: what is uploaded, what is refused, what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from report import extras
from report.conftest import Run
from report.fake_hub import TOKEN, FakeHub, Repo

from qdpo.cli.main import main
from qdpo.files import write_manifest


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that this process's client talks to, logged in."""
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # the fake stores whole files, not Xet's chunks
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    hub.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with an adapter, plots and two exports; the contents of weights are invented."""
    example = Run(tmp_path)
    example.use_hub_base()
    folder = example.write()
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "mlabonne/NeuralMarcoro14-7B"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"adapter" * 1000)
    (adapter / "tokenizer.json").write_text("{}")
    write_manifest(adapter)
    (folder / "plots").mkdir()
    (folder / "plots" / "loss.png").write_bytes(b"plot")
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 5000 for i in (1, 2)}
    extras.write_export(folder, "safetensors", {**shards, "config.json": b"{}"}, dtype="bfloat16")
    extras.write_export(folder, "gguf", {"toy-q4_k_m.gguf": b"gguf"}, files={"toy-q4_k_m.gguf": "Q4_K_M"})
    return folder


def push(run: Path, *more: str, to: str = "me/toy") -> int:
    return main(["push", "--run", str(run), "--to", to, *more])


def card(hub: FakeHub, name: str = "me/toy") -> dict[str, object]:
    values = yaml.safe_load(hub.repos[name].files["README.md"].decode().split("\n---\n")[0])
    assert isinstance(values, dict)
    return values


def test_an_adapter_with_its_card(hub: FakeHub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run) == 0
    repo = hub.repos["me/toy"]
    assert repo.private
    assert set(repo.files) == {
        *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "plots/loss.png", "README.md")
    }
    assert repo.files["adapter_model.safetensors"] == b"adapter" * 1000
    assert len(repo.commits) == 1, "all or nothing"
    assert card(hub)["library_name"] == "peft"
    assert 'PeftModel.from_pretrained(model, "me/toy")' in repo.files["README.md"].decode()
    assert capsys.readouterr().out.strip() == f"{hub.endpoint}/me/toy"


@pytest.mark.parametrize(
    ("format", "files"),
    [
        ("gguf", {"toy-q4_k_m.gguf"}),
        ("safetensors", {"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}),
    ],
)
def test_an_export_with_its_verification(hub: FakeHub, run: Path, format: str, files: set[str]) -> None:
    assert push(run, "--format", format) == 0
    found = set(hub.repos["me/toy"].files)
    assert found == {*files, "export.json", "verify.json", "plots/loss.png", "README.md"}
    assert "### Export: " + format in hub.repos["me/toy"].files["README.md"].decode()
    assert card(hub)["base_model_relation"] == "finetune"


def test_public_only_when_asked(hub: FakeHub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run, "--public") == 0
    assert not hub.repos["me/toy"].private
    assert push(run) == 73
    assert "is public already" in capsys.readouterr().err
    assert len(hub.repos["me/toy"].commits) == 1
    hub.repos["me/secret"] = Repo(private=True)
    assert push(run, "--public", to="me/secret") == 0
    assert "is private and stays so" in capsys.readouterr().err
    assert hub.repos["me/secret"].private


def test_an_existing_repository_keeps_its_other_files(hub: FakeHub, run: Path) -> None:
    hub.repos["me/toy"] = Repo(private=True, files={"notes.txt": b"mine", "README.md": b"old"})
    assert push(run) == 0
    files = hub.repos["me/toy"].files
    assert files["notes.txt"] == b"mine"
    assert files["README.md"] != b"old"


def test_what_is_not_in_the_manifest_stays_behind(hub: FakeHub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "adapter" / "passwords.txt").write_text("secret")
    assert push(run) == 0
    assert "passwords.txt" not in hub.repos["me/toy"].files
    assert "left behind: passwords.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        ("changed", 66, "does not match its SHA-256"),
        ("missing", 66, "adapter_model.safetensors is missing"),
        ("no adapter", 66, "has no finished adapter/"),
        ("no export", 66, "has no finished export/awq/"),
        ("failed", 66, "has failed its verification"),
        ("lost", 66, "has lost what was trained"),
        ("no run", 66, "name a run directory"),
        ("name", 64, "is no repository of the hub"),
    ],
)
def test_what_is_refused_before_anything_is_sent(
    hub: FakeHub, run: Path, damage: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more, to, weights = [], "me/toy", run / "adapter" / "adapter_model.safetensors"
    if damage == "changed":
        weights.write_bytes(b"Adapter" + weights.read_bytes()[7:])
    elif damage == "missing":
        weights.unlink()
    elif damage == "no adapter":
        (run / "adapter" / "manifest.json").unlink()
    elif damage == "no export":
        more = ["--format", "awq"]
    elif damage in ("failed", "lost"):
        more = ["--format", "gguf"]
        set_verdict(run, verdict=damage)
    elif damage == "no run":
        (run / "run.json").unlink()
    elif damage == "name":
        to = "not a name"
    assert push(run, *more, to=to) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert hub.requests == []


def set_verdict(run: Path, **entries: Any) -> None:
    """Change entries of the GGUF export's verify.json."""
    path = run / "export" / "gguf" / "verify.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"verdict": "cannot be told"}, "it cannot be told whether this export keeps what was trained"),
        ({"schema": 1, "passed": True}, "was verified by another version of qdpo"),
    ],
)
def test_what_is_not_known_of_an_export_is_said(
    hub: FakeHub, run: Path, entries: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_verdict(run, **entries)
    assert push(run, "--format", "gguf") == 0
    assert words in capsys.readouterr().err


def test_an_unverified_export_is_said_to_be(hub: FakeHub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "export" / "gguf" / "verify.json").unlink()
    assert push(run, "--format", "gguf") == 0
    assert "was not verified" in capsys.readouterr().err
    assert "Not verified: nothing is known" in hub.repos["me/toy"].files["README.md"].decode()


def test_a_base_on_this_machine_is_named(hub: FakeHub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/someone/base"}')
    write_manifest(run / "adapter")
    assert push(run) == 0
    assert "names the base by a path of this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trouble", "code", "words"),
    [
        ("no token", 69, "you are not logged in|does not accept your login"),
        ("wrong token", 69, r"does not accept your login \(401\)"),
        ("forbidden", 73, r"does not let you write to other/toy \(403\)"),
        ("commit forbidden", 73, r"does not let you write to me/toy \(403\)"),
        ("conflict", 73, r"was changed meanwhile \(409\)"),
        ("nobody there", 69, "cannot be reached"),
        ("offline", 69, "HF_HUB_OFFLINE is set"),
    ],
)
def test_what_the_hub_refuses_is_explained_and_no_token_is_shown(
    hub: FakeHub,
    run: Path,
    trouble: str,
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to, wrong = "me/toy", "hf_" + "WrongWrongWrongWrong"
    if trouble == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    elif trouble == "wrong token":
        monkeypatch.setenv("HF_TOKEN", wrong)
    elif trouble == "forbidden":
        hub.forbidden, to = {"other"}, "other/toy"
    elif trouble in ("commit forbidden", "conflict"):
        hub.trouble = 403 if trouble == "commit forbidden" else 409
    elif trouble == "nobody there":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    elif trouble == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert push(run, to=to) == code
    said = capsys.readouterr()
    assert re.search(words, said.err), said.err
    assert "hint: " in said.err
    assert "Traceback" not in said.err
    for secret in (TOKEN, wrong):
        assert secret not in said.err + said.out
    assert not any(repo.commits for repo in hub.repos.values())


def test_there_is_no_token_option(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run, "--token", TOKEN) == 64
    capsys.readouterr()
    assert main(["push", "--help"]) == 0
    assert "token" not in capsys.readouterr().out


def test_a_killed_upload_goes_on_where_it_was(hub: FakeHub, run: Path) -> None:
    """The process dies while the second large file is under way; the first one is not sent again."""
    shards = [run / "export" / "safetensors" / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in shards)
    hub.held = {second}
    command = [sys.executable, "-m", "qdpo", "push", "--run", str(run), "--to", "me/toy", "--format", "safetensors"]
    environment = {
        **os.environ,
        **{"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
    }
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert hub.waiting.wait(60), "the second file is under way"
    until = time.monotonic() + 30
    while first not in hub.objects and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert hub.repos["me/toy"].files == {}, "nothing is in the repository yet"
    assert first in hub.puts
    assert second not in hub.puts

    hub.held = set()
    hub.release.set()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert hub.puts.count(first) == 1
    assert hub.puts.count(second) == 1
    assert {path.name for path in shards} <= set(hub.repos["me/toy"].files)
    assert len(hub.repos["me/toy"].commits) == 1
    assert TOKEN not in done.stderr + done.stdout
