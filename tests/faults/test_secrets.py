"""Access tokens in the environment, in settings, in arguments and in errors appear nowhere; nor does the home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.fake_hub import hub
from faults.runs import SETTINGS, World
from training.tiny import make_tiny

from qdpo.cli.main import VERBS
from qdpo.redact import redact, redact_all

HUB = "hf_" + "QdPoFakeHubToken" + "x7Kp2mN4vB8cL1zR9t"
WANDB = "0f1e2d3c4b5a69788796a5b4c3d2e1f001234567"
URL = "UrlPassw0rdOfNobody"
STORED = "hf_" + "StoredByHfAuthLogin" + "9aB3dE5fG7hJ"
OTHER = "glpat-FakeGitLabToken1234567890"
TOKENS = (HUB, WANDB, URL, STORED, OTHER)
VARIABLES = {"HF_TOKEN": HUB, "WANDB_API_KEY": WANDB, "MY_SERVICE_PASSWORD": OTHER, "QDPO_TRACEBACK": "1"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder with a model, data and a stored token."""
    folder = tmp_path_factory.mktemp("home-of-somebody")
    make_tiny(folder / "models")
    (folder / "hf").mkdir()
    (folder / "hf" / "token").write_text(STORED)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    return {**VARIABLES, "HOME": str(home), "HF_HOME": str(home / "hf"), "QDPO_CACHE": str(home / "cache")}


def tokens_in(text: str | bytes) -> list[str]:
    """Which of the tokens are in a text."""
    data = text.encode() if isinstance(text, str) else text
    return [token for token in TOKENS if token.encode() in data]


def assert_clean(folder: Path) -> None:
    """No file below a folder holds a token, nor does a name of one."""
    for path in folder.rglob("*"):
        assert tokens_in(str(path.relative_to(folder))) == []
        if path.is_file():
            assert tokens_in(path.read_bytes()) == [], path


def test_a_run_leaves_no_token_and_its_card_no_home(here: World, environment: dict[str, str], home: Path) -> None:
    run, copy = home / "runs" / "one", home / "drive"
    overrides = [word for setting in (*SETTINGS, "train.max_steps=6") for word in ("--set", setting)]
    preset = home / "models" / "tiny.yaml"
    code, said = here.server.run(
        "train", "--preset", preset, "--run-dir", run, "--mirror", copy, *overrides, environment=environment
    )
    assert code == 0, said
    assert tokens_in(said) == []
    assert_clean(run)
    assert_clean(copy)
    cards = [path.read_text() for path in run.rglob("README.md")]
    assert cards
    assert all(str(home) not in card and home.name not in card and "~" not in card for card in cards)


MISTAKES = {
    "in a setting": (["--set", f"about=with {HUB}"], 78),
    "in an unknown setting": (["--set", f"train.{HUB}=1"], 78),
    "in a value of the wrong type": (["--set", f"train.seed={WANDB}"], 78),
    "in a list": (["--set", f"notes=[{HUB}]"], 78),
    "model with a password": (["--model", f"https://me:{URL}@127.0.0.1:9/owner/model"], 78),
    "data with a token": (["--data", f"https://127.0.0.1:9/x?token={OTHER}"], 78),
    "path with a token": (["--model", f"/nowhere/{HUB}/model"], 78),
    "unknown option": ([f"--token={HUB}"], 64),
    "unknown word": ([HUB], 64),
    "preset": (["--preset", f"{STORED}.yaml"], 78),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_error_shows_no_token(
    mistake: str, here: World, environment: dict[str, str], home: Path, tmp_path: Path
) -> None:
    more, expected = MISTAKES[mistake]
    run = tmp_path / "run"
    code, said = here.server.run(
        "train", "--preset", home / "models" / "tiny.yaml", "--run-dir", run, *more, environment=environment
    )
    assert code == expected, said
    assert "***" in said or "holds an access token" in said
    assert tokens_in(said) == []
    assert_clean(tmp_path)


def test_a_token_in_a_preset_is_refused_before_it_is_copied(
    here: World, environment: dict[str, str], home: Path, tmp_path: Path
) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text((home / "models" / "tiny.yaml").read_text().replace("about: a", f"about: {HUB}"))
    for verb in (["train", "--dry-run", "--preset"], ["presets", "show"]):
        code, said = here.server.run(*verb, preset, environment=environment)
        assert code == 78, said
        assert f"{preset}:2: about holds an access token" in said
        assert "HF_TOKEN" in said
        assert tokens_in(said) == []


def test_a_hub_that_repeats_the_token_in_its_answer(home: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """The address has a password as well; both would be in the client's own message."""
    with hub() as broken:
        broken.breaks(403)
        endpoint = broken.url.replace("//", f"//me:{URL}@")
        more = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", "qdpo", "train", "--preset", home / "models" / "tiny.yaml"]
        command += ["--model", "owner/model", "--run-dir", tmp_path / "run"]
        variables = {**os.environ, **environment, **more}
        done = subprocess.run(list(map(str, command)), env=variables, capture_output=True, text=True, timeout=120)
        assert broken.seen, "the hub was asked"
    assert done.returncode == 69, done.stderr
    assert "Traceback" in done.stderr, "as QDPO_TRACEBACK asks"
    assert tokens_in(done.stdout + done.stderr) == []
    assert_clean(tmp_path)


def test_no_verb_takes_a_token() -> None:
    for verb in VERBS:
        done = subprocess.run(
            [sys.executable, "-m", "qdpo", verb, "--help"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "--token" not in done.stdout, verb
        assert "api-key" not in done.stdout.lower()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("GET https://me:secret@host/x failed", "GET https://***@host/x failed"),
        ("https://host/x?a=1&token=secret&b=2", "https://host/x?a=1&token=***&b=2"),
        ("https://host/x?X-Amz-Signature=abc#top", "https://host/x?X-Amz-Signature=***#top"),
        ("Authorization: Bearer abcdef123456789", "Authorization: Bearer ***"),
        (f"'{HUB}'", "'***'"),
        ("hf_internal_testing is a name", "hf_internal_testing is a name"),
        ("a commit 0123456789abcdef0123456789abcdef01234567", "a commit 0123456789abcdef0123456789abcdef01234567"),
        ("step 100/200 https://huggingface.co/a/b@main", "step 100/200 https://huggingface.co/a/b@main"),
        ("the bearer of news", "the bearer of news"),
    ],
)
def test_what_is_hidden(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact_all({"a": [text, 1, None]}) == {"a": [clean, 1, None]}
    assert redact(clean) == clean


def test_what_the_environment_calls_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", "correct horse battery")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallelism")
    monkeypatch.setenv("MAX_TOKEN", "123456789")
    monkeypatch.setenv("SECRET_FILE", "/etc/hostname")
    assert redact("correct horse battery, parallelism, 123456789, /etc/hostname") == (
        "***, parallelism, 123456789, /etc/hostname"
    )
