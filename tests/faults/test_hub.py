"""Trouble with the hub, from a hub on the loopback to the real client: explained, soon, and offline from the cache."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.fake_hub import Hub, Repository, hub
from training.tiny import Tiny, make_model

NAME = "owner/tiny"
FIND = (
    "import json, sys\n"
    "from qdpo.errors import QdpoError\n"
    "from qdpo.model.source import find\n"
    "try:\n"
    "    source = find(sys.argv[1], json.loads(sys.argv[2]))\n"
    "    print(json.dumps({'folder': str(source.folder), 'revision': source.revision}))\n"
    "except QdpoError as error:\n"
    "    print(json.dumps({'code': error.exit_code, 'message': error.message, 'hint': error.hint}))\n"
)


@pytest.fixture
def here(tiny: Tiny) -> Iterator[Hub]:
    """A hub that has the tiny model."""
    with hub() as made:
        made.models[NAME] = Repository()
        made.models[NAME].push_folder(tiny.model)
        yield made


@pytest.fixture
def environment(here: Hub, tmp_path: Path) -> dict[str, str]:
    """Variables of a process that knows no other hub, with a cache of its own."""
    ours = {"HF_ENDPOINT": here.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    ours |= {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_TOKEN": "hf_" + "A1b2C3d4" * 4}
    return {**{k: v for k, v in os.environ.items() if not k.startswith("HF_HUB_CACHE")}, **ours}


def find(environment: dict[str, str], name: str = NAME, revision: str | None = None) -> dict[str, Any]:
    """What `qdpo.model.source.find` says, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FIND, name, json.dumps(revision)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_revision_is_a_commit_and_offline_it_comes_from_the_cache(here: Hub, environment: dict[str, str]) -> None:
    commit = here.models[NAME].refs["main"]
    here.models[NAME].refs["v1"] = commit
    for revision in (None, "v1", commit):
        found = find(environment, revision=revision)
        assert found["revision"] == commit
        assert re.fullmatch(r"[0-9a-f]{40}", found["revision"])
        assert (Path(found["folder"]) / "model.safetensors").is_file()
    here.breaks(500)
    assert find({**environment, "HF_HUB_OFFLINE": "1"}) == find({**environment, "HF_HUB_OFFLINE": "1"}, revision="v1")
    assert sum(here.seen.values()) == 0, "offline nobody asks"
    assert find(environment)["revision"] == commit, "a hub that is down is no reason to stop either"


FAULTS: dict[str, tuple[int | str, dict[str, str], list[str]]] = {
    "not authorised": (401, {}, ["HTTP 401", "hf auth whoami"]),
    "forbidden": (403, {}, ["HTTP 403", "--model PATH"]),
    "gated": (403, {"X_Error_Code": "GatedRepo"}, ["is gated", "accept its terms"]),
    "no such repository": (404, {"X_Error_Code": "RepoNotFound"}, ["no model owner/tiny", "check the name"]),
    "no such revision": (404, {"X_Error_Code": "RevisionNotFound"}, ["has no revision", "model.revision"]),
    "too many requests": (429, {"Retry_After": "0"}, ["429", "--model PATH"]),
    "broken": (500, {}, ["HTTP 500", "--model PATH"]),
    "down": (503, {}, ["HTTP 503", "--model PATH"]),
    "slow": ("slow", {}, ["cannot be reached", "timed out", "--model PATH"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_explained_and_soon(fault: str, here: Hub, environment: dict[str, str]) -> None:
    answer, headers, parts = FAULTS[fault]
    here.breaks(answer, **headers)
    begin = time.monotonic()
    said = find(environment)
    assert said["code"] == 69
    text = f"{said['message']} {said['hint']}"
    assert all(part in text for part in parts), text
    assert environment["HF_TOKEN"] not in text
    assert max(here.seen.values()) <= 4, here.seen
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("answer", [503, "slow"])
def test_a_download_that_breaks_off_is_tried_three_times_more(
    answer: int | str, here: Hub, environment: dict[str, str]
) -> None:
    here.breaks(answer, f"/{NAME}/resolve")
    begin = time.monotonic()
    said = find(environment)
    assert said["code"] == 69, said
    assert "after 3 retries" in said["message"]
    assert max(here.seen.values()) == 4, here.seen
    assert time.monotonic() - begin < 60
    here.breaks(None)
    partly = find({**environment, "HF_HUB_OFFLINE": "1"})
    assert partly["code"] == 69
    assert "in the local cache" in partly["message"]
    assert find(environment)["revision"] == here.models[NAME].refs["main"], "and goes on when the hub is back"


def test_no_hub_at_all(here: Hub, environment: dict[str, str]) -> None:
    said = find({**environment, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert said["code"] == 69
    assert "cannot be reached" in said["message"]
    assert "not in the local cache" in said["message"]
    assert "--model PATH" in said["hint"]


ROWS = (
    "import json, sys\n"
    "from qdpo.data.files.hub import commit_of, load\n"
    "from qdpo.errors import QdpoError\n"
    "print(json.dumps(commit_of(sys.argv[1], None)))\n"
    "try:\n"
    "    load(sys.argv[1], 'train', None, None)\n"
    "except QdpoError as error:\n"
    "    print(json.dumps({'code': error.exit_code, 'message': error.message, 'hint': error.hint}))\n"
)


def load_rows(environment: dict[str, str]) -> list[Any]:
    """What `qdpo.data.files.hub` says of a dataset: its commit, and the error of loading it."""
    command = [sys.executable, "-c", ROWS, NAME]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_commit_of_a_dataset_is_known(here: Hub, environment: dict[str, str]) -> None:
    assert load_rows(environment)[0] == here.models[NAME].refs["main"]
    offline = load_rows({**environment, "HF_HUB_OFFLINE": "1"})
    assert offline[0] is None
    assert offline[1]["code"] == 69


@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in ("slow", "no such revision")])
def test_a_fault_of_a_dataset_is_explained_and_soon(fault: str, here: Hub, environment: dict[str, str]) -> None:
    answer, headers, _ = FAULTS[fault]
    here.breaks(answer, **headers)
    begin = time.monotonic()
    commit, said = load_rows(environment)
    assert commit is None
    assert said["code"] == 69
    assert "--data PATH" in said["hint"]
    assert NAME in said["message"]
    assert environment["HF_TOKEN"] not in said["message"]
    assert time.monotonic() - begin < 60
    # two calls, each with its own count
    assert max(here.seen.values()) <= 8, here.seen


def test_a_run_stays_with_its_commit_when_the_branch_moves(
    here: Hub, environment: dict[str, str], tiny: Tiny, tmp_path: Path
) -> None:
    """Trained from the hub, and resumed after somebody has pushed other weights: the run's own are loaded."""
    first = here.models[NAME].refs["main"]
    command = [sys.executable, "-m", "qdpo", "train", "--run-dir", str(tmp_path / "run")]
    new = ["--preset", str(tiny.preset), "--model", NAME, "--set", "train.max_steps=4", "--set", "samples.count=0"]
    done = subprocess.run([*command, *new], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["base"]["revision"] == first

    make_model("llama", seed=5).save_pretrained(tmp_path / "other")
    files = {
        **here.models[NAME].commits[first],
        "model.safetensors": (tmp_path / "other/model.safetensors").read_bytes(),
    }
    assert here.models[NAME].push(files) != first
    resumed = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    again = json.loads((tmp_path / "run" / "run.json").read_text())
    assert again["base"] == record["base"]
    assert again["result"]["adapter_sha256"] == record["result"]["adapter_sha256"]
