"""The served report page: on loopback alone, to who knows the token alone, and a stop is asked for once."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import ask, known
from report.conftest import Run
from report.serving import held, served

from qdpo.errors import InputMissingError, UnavailableError
from qdpo.report.serve import Server
from qdpo.run import lock


@pytest.fixture
def server(example: Run) -> Iterator[Server]:
    """A server of a run that says that it trains."""
    example.run |= {"state": "running", "result": None}
    with served(example.write()) as server:
        yield server


@pytest.fixture
def holder(server: Server) -> Iterator[Any]:
    """A process that holds the run's lock, and counts the signals that it is sent."""
    with held(server.watched.folder) as process:
        yield process


def test_the_page_and_its_state(server: Server) -> None:
    status, page, headers = ask(server, "GET", f"/?token={server.token}")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert "connect-src 'self'" in page
    assert server.token not in page
    status, text, _ = ask(server, "GET", "/state", **known(server))
    found = json.loads(text)
    assert status == 200
    assert found["text"].startswith("ended without a word: step 120 of 120, training loss 0.")
    assert found["can_stop"] is False


def test_only_who_knows_the_token_is_answered(server: Server) -> None:
    for method, path in (("GET", "/"), ("GET", "/?token="), ("GET", "/?token=x"), ("GET", "/state"), ("POST", "/stop")):
        status, text, _ = ask(server, method, path)
        assert status == 403, path
        assert "token included" in text
        assert "quickstart" not in text
    # a form of another page can send an address, and no header of its own
    assert ask(server, "POST", f"/stop?token={server.token}")[0] == 403
    assert ask(server, "GET", f"/state?token={server.token}")[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "10.0.0.1"])
def test_another_name_is_refused(server: Server, host: str) -> None:
    assert ask(server, "GET", f"/?token={server.token}", Host=host)[0] == 403
    assert ask(server, "POST", "/stop", Host=host, **known(server))[0] == 403


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:1"])
def test_a_tunnel_has_another_port(server: Server, host: str) -> None:
    assert ask(server, "GET", f"/?token={server.token}", Host=host)[0] == 200


def test_another_page_may_not_stop_the_run(server: Server, holder: Any) -> None:
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.server_port + 1}"):
        assert ask(server, "POST", "/stop", Origin=origin, **known(server))[0] == 403
    assert holder.communicate("\n")[0] == "0\n"


def test_a_stop_is_asked_for_once(server: Server, holder: Any) -> None:
    assert json.loads(ask(server, "GET", "/state", **known(server))[1])["can_stop"]
    own = {"Origin": f"http://127.0.0.1:{server.server_port}", **known(server)}
    texts = [ask(server, "POST", "/stop", **own)[1] for _ in range(3)]
    assert "asked to stop" in texts[0]
    assert ["it was asked before" in text for text in texts] == [False, True, True]
    found = json.loads(ask(server, "GET", "/state", **known(server))[1])
    assert found["text"].startswith("stops after its step: ")
    assert not found["can_stop"]
    # a second server asks no more than the first
    with Server(server.watched.folder, 0) as other:
        assert "it was asked before" in other.watched.stop()
    assert lock.holder(server.watched.folder).pid == holder.pid
    assert holder.communicate("\n")[0] == "1\n"
    assert lock.holder(server.watched.folder) is None


def test_what_works_in_a_finished_run_is_left_alone(server: Server, example: Run, holder: Any) -> None:
    example.run["state"] = "finished"
    example.write()
    status, text, _ = ask(server, "POST", "/stop", **known(server))
    assert status == 409
    assert "it is finished" in text
    assert holder.communicate("\n")[0] == "0\n"


def test_a_process_of_another_machine_cannot_be_stopped(server: Server) -> None:
    lines = {"pid": os.getpid(), "host": "elsewhere", "boot": "x"}
    (server.watched.folder / lock.FILE).write_text(json.dumps(lines))
    status, text, _ = ask(server, "POST", "/stop", **known(server))
    assert status == 409
    assert "on elsewhere" in text
    assert json.loads(ask(server, "GET", "/state", **known(server))[1])["text"].startswith("running: ")


def test_what_is_written_is_seen_at_the_next_look(server: Server, example: Run) -> None:
    before = json.loads(ask(server, "GET", "/state", **known(server))[1])
    assert json.loads(ask(server, "GET", "/state", **known(server))[1]) == before
    example.line(120, heldout=True)["eval_loss"] = 0.4321
    example.write()
    after = json.loads(ask(server, "GET", "/state", **known(server))[1])
    assert after["version"] != before["version"]
    assert "held-out loss 0.4321" in after["text"]
    (server.watched.folder / "run.json").write_text("{")
    assert ask(server, "GET", f"/?token={server.token}")[0] == 503
    example.write()
    assert ask(server, "GET", f"/?token={server.token}")[0] == 200


def test_other_paths_and_methods(server: Server) -> None:
    assert ask(server, "GET", "/../run.json", **known(server))[0] == 404
    assert ask(server, "POST", "/state", **known(server))[0] == 404
    assert ask(server, "PUT", "/stop", **known(server))[0] == 501


def test_it_listens_on_loopback_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken(example: Run) -> None:
    folder = example.write()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match="cannot be used"):
            Server(folder, port)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        Server(tmp_path, 0)


def test_the_verb_serves_until_ctrl_c(example: Run) -> None:
    folder = example.write()
    command = [sys.executable, "-m", "qdpo", "report", "--run", str(folder), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        port = int(address.split(":")[2].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", address[address.index("/?") :])
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode == 0
    assert f"ssh -L {port}:127.0.0.1:{port}" in said
    assert "Traceback" not in said
    assert not (folder / "report.html").exists()
