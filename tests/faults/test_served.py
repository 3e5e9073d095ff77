"""The report page of a run that trains: served, kept new, and its button stops the run as one SIGTERM does."""

from __future__ import annotations

import json
import urllib.request
from typing import Any
from urllib.error import HTTPError

from faults.runs import World, state_of, steps_done, steps_saved, wait_for
from report.serving import served

from qdpo.loopback import TOKEN
from qdpo.report.serve import Server


def ask(server: Server, path: str, method: str = "GET") -> dict[str, Any]:
    """What the server answers, with `status`."""
    address = f"http://127.0.0.1:{server.server_port}{path}"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, method=method, headers={TOKEN: server.token}), timeout=60
        ) as answer:
            return {"status": answer.status, **json.load(answer)}
    except HTTPError as error:
        return {"status": error.code, **json.load(error)}


def test_a_run_is_watched_stopped_by_the_button_and_continued(here: World) -> None:
    folder = here.folder / "watched"
    process = here.train(folder, "train.max_steps=1000", "train.save_every=500", "train.eval_every=1000")
    wait_for(lambda: steps_done(folder) >= 1, process)
    with served(folder) as server:
        first = ask(server, "/state")
        assert first["can_stop"]
        assert first["text"].startswith("running: step ")
        assert " of 1,000, training loss 0." in first["text"]
        seen = steps_done(folder)
        wait_for(lambda: steps_done(folder) > seen, process)
        assert ask(server, "/state")["version"] != first["version"]
        with urllib.request.urlopen(server.address, timeout=60) as answer:
            page = answer.read().decode()
        assert 'id="live-stop"' in page
        assert server.token not in page
        stopped = ask(server, "/stop", "POST")
        assert stopped["status"] == 200
        assert "the step is finished and saved" in stopped["text"]
        again = ask(server, "/stop", "POST")
        # the second press is no second signal, which would end the run at once
        assert again["status"] == 409 or "it was asked before" in again["text"]
        assert process.wait() == 143, process.said()
        assert "stopped at once" not in process.said()
        assert state_of(folder) == "stopped"
        assert steps_saved(folder)[-1] == steps_done(folder)
        after = ask(server, "/state")
        assert after["text"].startswith(f"stopped: step {steps_done(folder):,} of 1,000")
        assert not after["can_stop"]
        assert ask(server, "/stop", "POST")["status"] == 409
        resumed = here.resume(folder)
        wait_for(lambda: ask(server, "/state")["can_stop"], resumed)
        assert ask(server, "/stop", "POST")["status"] == 200
        assert resumed.wait() == 143, resumed.said()
    first, second = json.loads((folder / "run.json").read_text())["processes"]
    assert (first["state"], second["state"]) == ("stopped", "stopped")
    assert second["from_step"] == first["to_step"] > 0


def test_a_run_that_was_killed_is_told_from_one_that_trains(here: World) -> None:
    folder = here.folder / "killed"
    process = here.train(folder, "train.max_steps=1000")
    wait_for(lambda: steps_done(folder) >= 1, process)
    process.send(9)
    process.wait()
    with served(folder) as server:
        found = ask(server, "/state")
        assert found["text"].startswith("ended without a word: step ")
        assert not found["can_stop"]
        assert ask(server, "/stop", "POST")["status"] == 409
