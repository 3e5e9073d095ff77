"""A run of several processes knows each of them: time is summed, the largest peak counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from training.tiny import Tiny, train_tiny, train_until

from qdpo.run.schema import Record

QUICK = ("samples.count=0", "train.max_steps=4", "train.save_every=2", "train.eval_every=4")


@pytest.fixture(scope="module")
def resumed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """run.json of a run that was killed in step 3, and continued; with it, as the killed process left it."""
    folder = tmp_path_factory.mktemp("processes") / "run"
    train_until(tiny, folder, 3, *QUICK)
    before = json.loads((folder / "run.json").read_text())
    # as if the first had worked long, and in more memory
    before["processes"][0] |= {"seconds": 1000.0, "peak_memory_bytes": 1 << 50}
    (folder / "run.json").write_text(json.dumps(before))
    train_tiny(tiny, folder, *QUICK, resume=True)
    return {"before": before, "after": json.loads((folder / "run.json").read_text())}


def test_a_process_that_was_killed_has_what_it_wrote_last(resumed: dict[str, Any]) -> None:
    (process,) = resumed["before"]["processes"]
    assert (process["state"], process["from_step"], process["to_step"]) == ("running", 0, 2)
    assert process["command"] == "qdpo train"
    assert process["began"].endswith("Z")


def test_the_result_is_of_all_processes(resumed: dict[str, Any]) -> None:
    first, second = resumed["after"]["processes"]
    assert first == resumed["before"]["processes"][0]
    assert (second["state"], second["from_step"], second["to_step"]) == ("finished", 2, 4)
    assert 0 < second["seconds"] < 600
    assert 0 < second["peak_memory_bytes"] < 1 << 40
    result = resumed["after"]["result"]
    assert result["seconds"] == 1000.0 + second["seconds"]
    assert result["peak_memory_bytes"] == 1 << 50


def test_a_run_that_kept_no_processes_has_its_result() -> None:
    record = Record.model_validate({"result": {"seconds": 5.0, "peak_memory_bytes": 7}})
    assert (record.seconds, record.peak_memory_bytes) == (5.0, 7)
    assert (Record().seconds, Record().peak_memory_bytes) == (None, None)
