"""A run's report page over HTTP while it trains, with a button that stops and saves it: `qdpo report --serve`.

Who is answered, `qdpo.loopback` decides.
"""

from __future__ import annotations

import hashlib
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any

from qdpo import loopback
from qdpo.errors import QdpoError, UnavailableError
from qdpo.loopback import Refused
from qdpo.report import markdown as md
from qdpo.report.facts import Facts, gather
from qdpo.report.page import render_page
from qdpo.run import lock
from qdpo.run.folder import CONFIG, DATA_REPORT, EVALUATION, EXPORT, METRICS, RECORD, SAMPLES, read_record

PORT = 8717
"""Where it listens if nobody takes it and nobody wants another."""

WRITTEN = (RECORD, CONFIG, METRICS, SAMPLES, DATA_REPORT, f"{EVALUATION}/*", f"{EXPORT}/*/*.json")
"""The files that a page is made from."""


class Watched:
    """A run that is looked at: its page and its state, made anew when its files have changed.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._one_at_a_time = threading.Lock()
        self._kept: tuple[str, str, str] = ("", "", "")

    def page(self) -> str:
        """The report page.

        Raises:
            InputMissingError: a file of the run cannot be understood.
        """
        return self._made()[1]

    def state(self) -> dict[str, Any]:
        """What the page asks for: the version of the files, where the run stands, and whether it can be stopped."""
        version, _, text = self._made()
        state, working = read_record(self.folder).state or "unknown", lock.holder(self.folder)
        can_stop = state == "running" and working is not None and not working.asked and not working.is_elsewhere()
        if state == "running" and working is None:
            state = "ended without a word"
        elif state == "running" and working is not None and working.asked:
            state = "stops after its step"
        return {"version": version, "text": f"{state}: {text}", "can_stop": can_stop}

    def stop(self) -> str:
        """Ask the run to stop, once; returns what to say.

        Raises:
            UnavailableError: there is nothing to stop, or it cannot be done from here.
        """
        state = read_record(self.folder).state
        if state != "running":
            raise UnavailableError(f"the run is not training: it is {state}", "there is nothing to stop")
        if lock.ask_to_stop(self.folder):
            return "asked to stop: the step is finished and saved, then the run stops"
        return "it was asked before: the step is finished and saved, then the run stops"

    def _made(self) -> tuple[str, str, str]:
        """Version, page, and how far the run is."""
        with self._one_at_a_time:
            version = self._version()
            if version != self._kept[0]:
                self._kept = (version, render_page(self.folder, live=True), words(gather(self.folder)))
            return self._kept

    def _version(self) -> str:
        found = []
        for pattern in WRITTEN:
            for path in sorted(self.folder.glob(pattern)):
                status = path.stat()
                found.append((str(path), status.st_mtime_ns, status.st_size))
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def words(run: Facts) -> str:
    """How far a run is, in a line."""
    parts = [f"step {run.steps or 0:,} of {run.planned:,}" if run.planned else f"step {run.steps or 0:,}"]
    if run.train:
        parts.append(f"training loss {md.decimal(run.train[-1].get('loss'))}")
    if run.evals:
        last = run.evals[-1]
        accuracy, margin = md.decimal(last.get("rewards/accuracies"), 3), md.decimal(last.get("rewards/margins"), 3)
        parts.append(f"held-out loss {md.decimal(last.get('loss'))}, accuracy {accuracy}, margin {margin}")
    return ", ".join(parts)


class Server(loopback.Server):
    """Serves a run on loopback.

    Args:
        folder: the run directory.
        port: None takes `PORT`, or any other when that is taken; 0 any.

    Raises:
        InputMissingError: the folder is not a run directory, or a file in it cannot be understood.
        UnavailableError: the port is taken.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.watched = Watched(folder)
        self.watched.page()
        super().__init__(Handler, port, PORT)


class Handler(loopback.Handler):
    """Answers a request."""

    server: Server
    command_of_server = "qdpo report --serve"

    def do_GET(self) -> None:
        """The page, or its state."""
        with self.answered():
            if self.place == "/":
                self.check_address()
                return self.send(HTTPStatus.OK, self.server.watched.page(), "text/html")
            self.check_header()
            if self.place != "/state":
                raise Refused(HTTPStatus.NOT_FOUND, "there is only the report here")
            return self.say(HTTPStatus.OK, self.server.watched.state())

    def do_POST(self) -> None:
        """Stop the run."""
        with self.answered():
            self.check_header()
            if self.place != "/stop":
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing to do here but stop")
            self.say(HTTPStatus.OK, {"text": self.server.watched.stop()})

    def words(self, error: QdpoError | OSError) -> str:
        """An error without the folders; a run that is written to at this moment is whole again at the next look."""
        return md.without_folders(error)
