"""A hub on loopback: the part of its HTTP interface that an upload uses, for the real `huggingface_hub` client."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "FakeFakeFakeFakeFakeFake"
LARGE = (".safetensors", ".gguf", ".png")


@dataclass
class Repo:
    """A repository.

    Attributes:
        private: whether only its owner sees it.
        files: path -> content, after each commit.
        commits: what each commit changed.
    """

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)


class FakeHub:
    """The server and what it has seen.

    Attributes:
        repos: by name.
        objects: large files by SHA-256.
        puts: SHA-256 of every large file that was sent, in order.
        requests: method and path of every request.
        held: SHA-256 of large files whose upload hangs until `release` is set.
        forbidden: users whose repositories may not be written to.
        trouble: a status that every commit is answered with.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.requests: list[str] = []
        self.held: set[str] = set()
        self.waiting, self.release = threading.Event(), threading.Event()
        self.forbidden: set[str] = set()
        self.trouble: int | None = None
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def answer(self, status: int, body: Any) -> None:
        """Send JSON."""
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def content(self) -> bytes:
        """The request's body."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handled(self, method: str) -> bool:
        """Note the request, and refuse it without a login."""
        self.server_hub.requests.append(f"{method} {self.path}")
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        self.content()
        self.answer(401, {"error": "Invalid username or password."})
        return True

    def do_GET(self) -> None:
        """Information on a repository."""
        if self.handled("GET"):
            return
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        repo = self.server_hub.repos.get(name)
        if repo is None:
            return self.answer(404, {"error": "Repository not found"})
        self.answer(200, {"id": name, "private": repo.private, "siblings": [], "tags": []})

    def do_PUT(self) -> None:
        """A large file; its address is its signature, as on the hub."""
        hub, oid = self.server_hub, self.path.rpartition("/")[2]
        hub.requests.append(f"PUT {self.path}")
        if oid in hub.held:
            hub.waiting.set()
            hub.release.wait(60)
            return
        content = self.content()
        assert hashlib.sha256(content).hexdigest() == oid
        hub.objects[oid] = content
        hub.puts.append(oid)
        self.answer(200, {})

    def do_POST(self) -> None:
        """Everything else."""
        if self.handled("POST"):
            return
        hub, body = self.server_hub, self.content()
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [self.large(entry) for entry in json.loads(body)["objects"]]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if "/commit/" in self.path:
            if hub.trouble is not None:
                return self.answer(hub.trouble, {"error": "no"})
            return self.commit(hub.repos[name], name, [json.loads(line) for line in body.splitlines()])
        self.answer(404, {"error": f"the fake knows no {self.path}"})

    def create(self, wanted: dict[str, Any]) -> None:
        """Make a repository."""
        hub, name = self.server_hub, f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name.partition("/")[0] in hub.forbidden:
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        url = f"{hub.endpoint}/{name}"
        if name in hub.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        hub.repos[name] = Repo(bool(wanted.get("private") or wanted.get("visibility") == "private"))
        self.answer(200, {"url": url})

    def large(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What to do with a large file: nothing, if it is here already."""
        if entry["oid"] in self.server_hub.objects:
            return entry
        return {**entry, "actions": {"upload": {"href": f"{self.server_hub.endpoint}/store/{entry['oid']}"}}}

    def commit(self, repo: Repo, name: str, lines: list[dict[str, Any]]) -> None:
        """Make a commit of everything, or refuse it."""
        changed = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server_hub.objects:
                    return self.answer(400, {"error": f"{value['path']} was not uploaded"})
                changed[value["path"]] = self.server_hub.objects[value["oid"]]
        repo.files |= changed
        repo.commits.append(sorted(changed))
        oid = f"{len(repo.commits):040x}"
        self.answer(200, {"commitUrl": f"{self.server_hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})


def _mode(path: str) -> str:
    return "lfs" if path.endswith(LARGE) else "regular"
