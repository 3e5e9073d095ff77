"""The server of `qdpo pairs vote`: who is answered, what it takes, and what is on the disk."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import ask, known
from pairing.polls import polled, rows_of, write_answers

from qdpo.errors import BusyError
from qdpo.loopback import TOKEN
from qdpo.pairing.answers import read_answers
from qdpo.pairing.poll import Poll, log_of
from qdpo.pairing.serve import LONGEST, Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with polled(write_answers(tmp_path / "answers.jsonl"), tmp_path / "pairs.jsonl") as server:
        yield server


def shown(server: Server, after: str = "") -> dict[str, Any]:
    """What the page shows."""
    return json.loads(ask(server, "GET", f"/state?after={after}", **known(server))[1])


def test_the_page_holds_no_data_and_asks_nobody(server: Server) -> None:
    status, page, headers = ask(server, "GET", f"/?token={server.token}")
    assert status == 200
    assert "answer 0.0" not in page
    assert server.token not in page
    assert "http:" not in page
    assert "https:" not in page
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"


def test_only_who_knows_the_token_is_answered(server: Server) -> None:
    name = shown(server)["comparison"]["name"]
    vote = {"comparison": name, "vote": "left"}
    for method, path, body in (
        *(("GET", "/", None), ("GET", "/?token=x", None), ("GET", "/state", None)),
        *(("POST", "/vote", vote), ("POST", "/undo", vote), ("POST", "/finish", {})),
    ):
        status, text, _ = ask(server, method, path, body)
        assert status == 403, path
        assert "open the address that qdpo pairs vote printed" in text
    # in the address, where a page of another site could put it, it counts for the page alone
    assert ask(server, "POST", f"/vote?token={server.token}", vote)[0] == 403
    for host in ("evil.example", "127.0.0.1.evil.example:80", "10.0.0.1"):
        assert ask(server, "POST", "/vote", vote, Host=host, **known(server))[0] == 403
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert ask(server, "POST", "/vote", vote, Origin=origin, **known(server))[0] == 403
    assert not server.poll.out.exists()
    own = {"Origin": f"http://127.0.0.1:{server.server_port}", **known(server)}
    assert ask(server, "POST", "/vote", vote, **own)[0] == 200
    assert len(rows_of(server.poll.out)) == 1


def test_what_is_no_vote(server: Server) -> None:
    name = shown(server)["comparison"]["name"]
    for body, status in (
        ("nonsense", 400),
        ("[]", 400),
        ({"comparison": name, "vote": "up"}, 400),
        ({"comparison": name}, 400),
        ({"comparison": name, "vote": "edit left"}, 400),
        ({"comparison": name, "vote": "edit left", "edited": "  "}, 400),
        ({"comparison": name, "vote": "edit left", "edited": "\ud800"}, 400),
        ({"comparison": "nothing-1", "vote": "left"}, 409),
        ({"comparison": "", "vote": "left"}, 409),
        ({"vote": "left"}, 409),
    ):
        assert ask(server, "POST", "/vote", body, **known(server))[0] == status, body
    assert ask(server, "POST", "/undo", {"comparison": name}, **known(server))[0] == 409
    assert ask(server, "POST", "/undo", {"comparison": ""}, **known(server))[0] == 409
    assert ask(server, "POST", "/state", {}, **known(server))[0] == 404
    assert ask(server, "GET", "/vote", **known(server))[0] == 404
    assert not server.poll.journal.rows


def test_a_request_has_a_bound(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest("POST", "/vote")
    for key, value in {TOKEN: server.token, "Content-Length": str(LONGEST + 1)}.items():
        connection.putheader(key, value)
    connection.endheaders()
    assert connection.getresponse().status == 413


def test_a_vote_that_cannot_be_written_does_not_count(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    name = shown(server)["comparison"]["name"]
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        # a part of the line still fits
        if len(data) > 20:
            return write(descriptor, bytes(data[:20]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("qdpo.pairing.journal.os.write", full)
        status, text, _ = ask(server, "POST", "/vote", {"comparison": name, "vote": "left"}, **known(server))
    assert status == 503
    assert "the disk is full" in text
    assert shown(server)["done"] == 0
    assert log_of(server.poll.out).read_bytes() == b""
    assert ask(server, "POST", "/vote", {"comparison": name, "vote": "left"}, **known(server))[0] == 200
    assert len(rows_of(log_of(server.poll.out))) == 1


def test_two_processes_do_not_vote_into_one_file(server: Server) -> None:
    answers = read_answers(str(server.poll.out.parent / "answers.jsonl"))
    with pytest.raises(BusyError, match="another process writes"), Poll.opened(answers, server.poll.out, 1):
        pass
