"""The served page in headless Chromium: it says how far the run is, shows what is new, and its button stops the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from report import extras
from report.browser import chromium
from report.conftest import Run
from report.serving import held, served

from qdpo.report.serve import Server


@pytest.fixture
def live(example: Run) -> Iterator[tuple[Server, Any, Any]]:
    """A server of a run that trains, the page in a browser, and the process that trains; no complaint is let pass."""
    example.run |= {"state": "running", "result": None}
    folder = example.write()
    extras.write_scored_pairs(folder, [(f"prompt {i}", "a", "b") for i in range(3)])
    with chromium() as browser, served(folder) as server, held(folder) as process:
        page, troubles = browser.new_page(viewport={"width": 400, "height": 800}), []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: troubles.append(said.text) if said.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(server.address)
        yield server, page, process
        # the browser asks for an icon by itself, without the token
        assert [text for text in troubles if "403" not in text] == []


def says(page: Any, text: str) -> None:
    """Wait until the page says how far the run is, in these words."""
    page.wait_for_function("(text) => document.getElementById('live-state').textContent.includes(text)", arg=text)


def test_the_button_stops_the_run(live: tuple[Server, Any, Any]) -> None:
    _, page, process = live
    says(page, "running: step 120 of 120")
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]
    assert page.locator("#live-stop").bounding_box()["height"] >= 32
    page.click("#live-stop")
    says(page, "asked to stop")
    says(page, "stops after its step")
    assert not page.is_visible("#live-stop")
    assert process.communicate("\n")[0] == "1\n"
    says(page, "ended without a word")


def test_what_is_new_is_shown_and_a_reader_is_not_interrupted(live: tuple[Server, Any, Any], example: Run) -> None:
    _, page, _ = live
    says(page, "running")
    example.run["name"] = "the second"
    example.write()
    page.wait_for_function("() => document.title.startsWith('the second')")
    says(page, "running")
    page.click("#pairs-list summary")
    example.run["name"] = "the third"
    example.write()
    page.wait_for_selector("#live-reload:visible")
    assert page.title().startswith("the second")
    assert page.locator("#pairs-list details[open]").count() == 1
    page.click("#live-reload")
    page.wait_for_function("() => document.title.startsWith('the third')")
