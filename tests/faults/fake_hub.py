"""A hub on the loopback: what huggingface_hub's client asks of the real one, and the ways in which that can fail."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """A repository: commits by their 40 hex digits, and what the names of revisions point to.

    Attributes:
        commits: files by path, of each commit.
        refs: branch or tag -> commit.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def push(self, files: dict[str, bytes], ref: str = "main") -> str:
        """Add a commit, and let a branch point to it."""
        parts = [name.encode() + content for name, content in sorted(files.items())]
        commit = hashlib.sha1(b"".join(parts)).hexdigest()
        self.commits[commit] = files
        self.refs[ref] = commit
        return commit

    def push_folder(self, folder: Path) -> str:
        """Add the files of a folder as a commit."""
        return self.push({path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()})


@dataclass
class Hub:
    """The hub.

    Attributes:
        url: HF_ENDPOINT.
        models: models and datasets by `owner/name`.
        fault: status code of every answer, or `slow` (an answer that comes too late); None for a hub in good health.
        headers: of every answer that is a fault.
        faulty: paths that the fault is for begin like this.
        seen: how often each request came, by method and path.
    """

    url: str = ""
    models: dict[str, Repository] = field(default_factory=dict)
    fault: int | str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    faulty: str = "/"
    seen: Counter[str] = field(default_factory=Counter)
    tokens: set[str] = field(default_factory=set)

    def breaks(self, fault: int | str | None, faulty: str = "/", **headers: str) -> None:
        """From now on answer like this."""
        self.fault, self.faulty = fault, faulty
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.seen.clear()


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub for the duration of a block."""
    state = Hub()

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen[f"{self.command} {path}"] += 1
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if self.hub.fault is not None and path.startswith(self.hub.faulty):
            if self.hub.fault == "slow":
                time.sleep(5)
                self.close_connection = True
                return
            message = self.headers.get("Authorization", "nobody")
            text = json.dumps({"error": f"refused for {message}"}).encode()
            self._send(int(self.hub.fault), text, self.hub.headers, body)
            return
        parts = path.strip("/").split("/")
        if parts[:1] == ["api"] and parts[1:2] in (["models"], ["datasets"]):
            self._api("/".join(parts[2:4]), parts[4:], body)
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body)
        else:
            self._missing("EntryNotFound", body)

    def _api(self, name: str, rest: list[str], body: bool) -> None:
        repository = self.hub.models.get(name)
        if repository is None:
            self._missing("RepoNotFound", body)
            return
        wanted = rest[1] if len(rest) > 1 else "main"
        commit = repository.refs.get(wanted, wanted)
        if commit not in repository.commits:
            self._missing("RevisionNotFound", body)
            return
        files = repository.commits[commit]
        if rest[:1] == ["tree"]:
            entries = [{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files.items()]
            self._json(entries, body)
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}, body)

    def _file(self, name: str, revision: str, path: str, body: bool) -> None:
        repository = self.hub.models.get(name, Repository())
        commit = repository.refs.get(revision, revision)
        content = repository.commits.get(commit, {}).get(path)
        if content is None:
            self._missing("EntryNotFound", body)
            return
        self._send(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit}, body)

    def _missing(self, code: str, body: bool) -> None:
        self._send(404, b'{"error": "not here"}', {"X-Error-Code": code}, body)

    def _json(self, value: Any, body: bool) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
