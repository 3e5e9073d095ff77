"""The report page in headless Chromium: opened, clicked, in light and dark, and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report import extras
from report.browser import chromium
from report.conftest import Run
from report.test_page import EVIL, TEXTS

from qdpo.report.page import write_page

DESKTOP = {"viewport": {"width": 1100, "height": 900}}
CONTRAST = """() => {
  const channel = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map((value) => channel(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = (name) => getComputedStyle(document.querySelector(name));
  const paper = light(style("body").backgroundColor);
  const ratio = (ink) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  return { paper, ratios: ["body", ".soft", "nav a", "th"].map((name) => ratio(light(style(name).color))) };
}"""
SMALLEST = """Math.min(...[...document.querySelectorAll("p, td, pre")].map(
  (one) => parseFloat(getComputedStyle(one).fontSize)))"""
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """The page of a run whose data is hostile, and the margins of its pairs."""
    run = Run(tmp_path_factory.mktemp("run"))
    folder = run.write()
    extras.write_samples(folder, [(EVIL, "base says", "result says"), ("second", "a", "a")])
    margins = extras.write_scored_pairs(folder, TEXTS)
    extras.write_heldout(folder)
    return write_page(folder), margins


@pytest.fixture
def opened(browser: Any, page_file: tuple[Path, list[float]], request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, opened; whatever it asked the network for, or complained of, fails the test."""
    context = browser.new_context(offline=True, **getattr(request, "param", DESKTOP))
    page, asked, troubles = context.new_page(), [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: troubles.append("a dialog opened"))
    page.goto(page_file[0].as_uri())
    yield page
    assert page.title() == "quickstart: report", "nothing of the data has run"
    context.close()
    assert asked == [page_file[0].as_uri()]
    assert troubles == []


def margins_shown(page: Any) -> list[float]:
    return [float(text) for text in page.locator("#pairs-list summary .margin").all_inner_texts()]


def test_pairs_are_sorted_filtered_searched_and_opened(opened: Any, page_file: tuple[Path, list[float]]) -> None:
    margins = sorted(round(margin, 3) for margin in page_file[1])
    assert margins_shown(opened) == pytest.approx(margins[:20], abs=1e-9)
    assert opened.inner_text("#pairs-count") == "20 of 50 pairs"
    opened.click("#pairs-more")
    opened.click("#pairs-more")
    assert len(margins_shown(opened)) == 50
    assert not opened.is_visible("#pairs-more")
    opened.select_option("#pairs-order", "highest")
    assert margins_shown(opened) == pytest.approx(margins[::-1][:20], abs=1e-9)
    opened.select_option("#pairs-filter", "lost")
    assert all(margin <= 0 for margin in margins_shown(opened))
    opened.select_option("#pairs-filter", "all")
    opened.fill("#pairs-search", "PROMPT 17 ")
    assert opened.inner_text("#pairs-count") == "1 of 1 pairs"
    opened.click("#pairs-list summary")
    opened.locator("#pairs-list pre").nth(2).wait_for()
    texts = opened.locator("#pairs-list pre").all_inner_texts()
    assert [text.split(" <")[0].split(" </")[0] for text in texts] == ["prompt 17", "chosen 17", "rejected 17"]
    assert "<img src=x onerror" in texts[1], "shown as text"
    assert opened.locator("main img").count() == 0


def test_curves_are_read_and_zoomed(opened: Any) -> None:
    chart = opened.locator("#chart-loss")
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg[role=img]").bounding_box()
    reading = chart.locator("output")
    assert "(step 120)" in reading.inner_text(), "the end of the run at first"
    opened.mouse.move(box["x"] + 60, box["y"] + 100)
    assert "held-out 0.6931 (step 0)" in reading.inner_text()
    labels = chart.locator("svg[role=img] text").all_text_contents()
    opened.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 80)
    opened.mouse.down()
    opened.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 80, steps=4)
    assert chart.locator("rect.drag").count() == 1
    opened.mouse.up()
    zoomed = chart.locator("svg[role=img] text").all_text_contents()
    assert zoomed != labels
    assert "0" not in [text for text in zoomed if text.isdigit()], "the beginning is out of sight"
    chart.get_by_role("button", name="whole run").click()
    assert chart.locator("svg[role=img] text").all_text_contents() == labels
    chart.get_by_role("button", name="zoom in").click()
    assert chart.locator("svg[role=img] text").all_text_contents() != labels
    chart.locator("svg[role=img]").dblclick(position={"x": 300, "y": 80})
    assert chart.locator("svg[role=img] text").all_text_contents() == labels


def test_samples_of_each_evaluation(opened: Any) -> None:
    assert opened.locator("[data-step='120']").is_visible()
    assert opened.locator("[data-step='120'] pre").all_inner_texts()[2] == "result says"
    opened.select_option("#samples-step", "0")
    assert not opened.locator("[data-step='120']").is_visible()
    assert opened.locator("[data-step='0']").is_visible()


@pytest.mark.parametrize("opened", [DESKTOP, PHONE], indirect=True, ids=["desktop", "phone"])
def test_fits_the_screen(opened: Any) -> None:
    width = opened.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1], "no sideways scrolling"
    small = opened.evaluate(SMALLEST)
    assert small >= 13
    for chart in opened.locator(".chart").all():
        assert chart.bounding_box()["height"] < 480, "a chart with its legend and its reading"
    for button in opened.locator("button:visible, select:visible").all():
        assert button.bounding_box()["height"] >= 32


@pytest.mark.parametrize("opened", [{**DESKTOP, "color_scheme": scheme} for scheme in ("light", "dark")], indirect=True)
def test_light_and_dark_have_contrast(opened: Any) -> None:
    found = opened.evaluate(CONTRAST)
    assert min(found["ratios"]) >= 4.5, "WCAG AA"
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (found["paper"] < 0.1) == dark
