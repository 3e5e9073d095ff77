"""The page of `qdpo pairs vote` in headless Chromium: by keyboard alone, in two tabs, killed in the middle."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pairing.polls import polled, rows_of, voting, write_answers, write_rows
from report.browser import chromium

from qdpo.pairing.poll import log_of

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & <b>bold</b>\n\n  x"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a page; whatever the browser complains of fails the test, and so does a request to anywhere else."""
    troubles: list[str] = []
    pages = []

    def page(address: str, **options: Any) -> Any:
        page = browser.new_page(**options)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: troubles.append(said.text) if said.type in ("error", "warning") else None)
        origin = address.split("?")[0]
        page.on("request", lambda request: None if request.url.startswith(origin) else troubles.append(request.url))
        page.goto(address)
        page.wait_for_selector("#main:visible, #done:visible")
        pages.append(page)
        return page

    yield page
    for one in pages:
        one.close()
    # a vote that was refused is an error to the browser too, and so is a server that was killed
    expected = ("409", "400", "ERR_CONNECTION_REFUSED", "data:", "Executing inline event handler violates")
    assert [text for text in troubles if not any(part in text for part in expected)] == []


def compared(page: Any, done: int) -> None:
    """Wait until so many comparisons are voted on."""
    page.wait_for_function(
        "(text) => document.getElementById('progress-text').textContent.startsWith(text)", arg=f"{done} of"
    )


def says(page: Any, text: str) -> None:
    page.wait_for_function("(text) => document.body.innerText.includes(text)", arg=text)


def test_by_keyboard_alone(opened: Any, tmp_path: Path) -> None:
    file, out = write_answers(tmp_path / "answers.jsonl", prompts=6), tmp_path / "pairs.jsonl"
    with polled(file, out) as server:
        page = opened(server.address)
        texts = []
        for done, key in enumerate(("ArrowLeft", "ArrowRight", "t", "s"), 1):
            texts.append({side: page.inner_text(f"#{side}") for side in ("left", "right")})
            page.keyboard.press(key)
            compared(page, done)
            # on the disk before the page says so
            assert len(rows_of(log_of(out))) == done
        assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows_of(out)] == [
            ("prompt 0", texts[0]["left"], texts[0]["right"]),
            ("prompt 1", texts[1]["right"], texts[1]["left"]),
        ]
        # Later puts a comparison off
        before = page.inner_text("#prompt")
        page.keyboard.press("n")
        page.wait_for_function("(text) => document.getElementById('prompt').innerText !== text", arg=before)
        assert page.inner_text("#prompt") == "prompt 5"
        # an edit is preferred to what was edited
        right = page.inner_text("#right")
        page.keyboard.press("Shift+E")
        assert page.evaluate("document.activeElement.id") == "editor-text"
        assert page.input_value("#editor-text") == right
        page.keyboard.press("Control+Enter")
        says(page, "The text is as it was")
        page.keyboard.press("Control+A")
        page.keyboard.type("better, n s t u")
        page.keyboard.press("Control+Enter")
        compared(page, 5)
        assert not page.is_visible("#editor")
        assert rows_of(out)[-1] == {"prompt": "prompt 5", "chosen": "better, n s t u", "rejected": right}
        page.keyboard.press("e")
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowLeft")
        compared(page, 6)
        says(page, "Every comparison is voted on")
        page.keyboard.press("ArrowLeft")  # there is nothing to vote on
        page.keyboard.press("u")
        compared(page, 5)
        assert page.inner_text("#prompt") == "prompt 4"
        assert len(rows_of(out)) == 3
        # Tab and Enter reach everything
        page.focus("#vote-tie")
        page.keyboard.press("Enter")
        compared(page, 6)
        assert [row["vote"] for row in rows_of(log_of(out))] == (
            ["left", "right", "tie", "skip", "edit right", "left", "undo", "tie"]
        )


def test_names_are_hidden_and_sides_are_drawn(opened: Any, tmp_path: Path) -> None:
    file = write_answers(tmp_path / "answers.jsonl", prompts=12)
    lefts = []
    with polled(file, tmp_path / "pairs.jsonl") as server:
        page = opened(server.address)
        for done in range(1, 13):
            assert "base" not in page.content()
            lefts.append(page.inner_text("#left"))
            page.keyboard.press("t")
            compared(page, done)
    first = sum(text.endswith(".0") for text in lefts)
    assert 2 < first < 10


def test_an_answer_that_was_cut_says_so(opened: Any, tmp_path: Path) -> None:
    answers = [{"text": "a whole one", "ended": True}, {"text": "a cut o", "ended": False}]
    file = write_rows(tmp_path / "answers.jsonl", [{"prompt": "p", "answers": answers}])
    with polled(file, tmp_path / "pairs.jsonl") as server:
        page = opened(server.address)
        for side in ("left", "right"):
            assert page.is_visible(f"#{side}-cut") == (page.inner_text(f"#{side}") == "a cut o")
        page.keyboard.press("t")
        compared(page, 1)
    line = rows_of(log_of(tmp_path / "pairs.jsonl"))[0]
    assert sorted(map(str, (line["left"], line["right"]))) == [
        "{'text': 'a cut o', 'ended': False}",
        "{'text': 'a whole one'}",
    ]


def test_texts_are_texts(opened: Any, tmp_path: Path) -> None:
    long = "word " * 40_000
    prompt = [{"role": "system", "content": HOSTILE}, {"role": "user", "content": f"user {HOSTILE}"}]
    rows = [{"prompt": prompt, "answers": [HOSTILE, f"{HOSTILE} too"]}, {"prompt": "p", "answers": [long, "مرحبا"]}]
    file, out = write_rows(tmp_path / "answers.jsonl", rows), tmp_path / "pairs.jsonl"
    with polled(file, out) as server:
        page = opened(server.address)
        shown = {page.text_content("#left"), page.text_content("#right")}
        assert shown == {HOSTILE, f"{HOSTILE} too"}
        assert page.inner_text("#prompt .role >> nth=0") == "system"
        assert page.locator("#main script, #main img, #main b").count() == 0
        page.keyboard.press("ArrowLeft")
        compared(page, 1)
        assert page.title() == "Which answer is better?"
        assert rows_of(out)[0]["prompt"] == prompt
        # nor would markup run: the policy lets the page's own script through alone
        page.evaluate("() => { document.body.setAttribute('onclick', \"document.title = 'owned'\"); }")
        page.click("body", position={"x": 5, "y": 5})
        assert page.title() == "Which answer is better?"
        # of a long answer the page scrolls, and the buttons stay in sight
        assert page.evaluate("document.documentElement.scrollHeight") > 5000
        box = page.locator("#vote-left").bounding_box()
        assert 0 < box["y"] < page.viewport_size["height"]
        page.keyboard.press("ArrowRight")
        compared(page, 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone(opened: Any, tmp_path: Path, scheme: str) -> None:
    file = write_rows(tmp_path / "answers.jsonl", [{"prompt": "p" * 300, "answers": ["a" * 500, "b\tc " * 200]}])
    with polled(file, tmp_path / "pairs.jsonl") as server:
        page = opened(server.address, viewport={"width": 390, "height": 800}, color_scheme=scheme)
        width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width[0] <= width[1]
        left, right = (page.locator(f"#{side}").bounding_box() for side in ("left", "right"))
        assert right["y"] > left["y"] + left["height"]
        for name in ("vote-left", "vote-right", "vote-tie", "vote-skip", "next", "undo", "finish"):
            assert page.locator(f"#{name}").bounding_box()["height"] >= 40
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert (sum(map(int, paper[4:-1].split(","))) > sum(map(int, ink[4:-1].split(",")))) == (scheme == "light")


def test_what_a_screen_reader_hears(opened: Any, tmp_path: Path) -> None:
    file = write_answers(tmp_path / "answers.jsonl")
    with polled(file, tmp_path / "pairs.jsonl") as server:
        page = opened(server.address)
        for name in ("Left answer", "Right answer", "Comparison 1 of 4"):
            assert page.get_by_role("heading", name=name).count() == 1
            assert page.get_by_role("region", name=name).count() == 1
        for name in ("Left is better", "Right is better", "Tie", "Skip", "Later", "Undo", "Edit left", "Edit right"):
            assert page.get_by_role("button", name=name).count() == 1
        assert page.get_by_role("progressbar", name="comparisons voted on").count() == 1
        page.keyboard.press("ArrowLeft")
        compared(page, 1)
        assert page.get_by_role("status").inner_text() == "Saved: left is better."
        # the next prompt is read, wherever the focus was
        assert page.evaluate("document.activeElement.id") == "question"
        assert page.get_by_role("heading", name="Comparison 2 of 4").count() == 1
        page.keyboard.press("e")
        assert page.get_by_role("dialog", name="Edit the left answer").count() == 1


def test_two_tabs_vote_once(opened: Any, tmp_path: Path) -> None:
    file, out = write_answers(tmp_path / "answers.jsonl"), tmp_path / "pairs.jsonl"
    with polled(file, out) as server:
        first, second = opened(server.address), opened(server.address)
        first.keyboard.press("ArrowLeft")
        compared(first, 1)
        second.keyboard.press("ArrowRight")
        says(second, "this comparison was voted on already")
        compared(second, 1)
        assert second.inner_text("#prompt") == "prompt 1"
        second.keyboard.press("ArrowRight")
        compared(second, 2)
        assert second.inner_text("#trouble") == ""
        # undo is for the vote that this tab knows of
        first.keyboard.press("u")
        says(first, "another vote was given meanwhile")
        assert [row["vote"] for row in rows_of(log_of(out))] == ["left", "right"]
        first.keyboard.press("u")
        compared(first, 1)
        assert [row["prompt"] for row in rows_of(out)] == ["prompt 0"]


def test_a_key_that_is_held_down_votes_once(opened: Any, tmp_path: Path) -> None:
    file, out = write_answers(tmp_path / "answers.jsonl"), tmp_path / "pairs.jsonl"
    with polled(file, out) as server:
        page = opened(server.address)
        page.keyboard.down("ArrowLeft")
        for _ in range(5):
            page.keyboard.down("ArrowLeft")
        page.keyboard.up("ArrowLeft")
        compared(page, 1)
        page.keyboard.press("Control+T")
        assert len(rows_of(log_of(out))) == 1


def test_killed_in_the_middle_and_gone_on_with(opened: Any, tmp_path: Path) -> None:
    file = write_answers(tmp_path / "answers.jsonl")
    out = tmp_path / "answers-pairs.jsonl"
    with voting(file) as (process, address):
        page = opened(address)
        page.keyboard.press("ArrowLeft")
        compared(page, 1)
        page.keyboard.press("ArrowRight")
        compared(page, 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        page.keyboard.press("ArrowLeft")
        says(page, "every vote that was called saved is kept")
        page.close()
    assert len(rows_of(out)) == 2
    # a kill between the two files, and in the middle of a line
    out.write_bytes(out.read_bytes()[:-20])
    with log_of(out).open("ab") as stream:
        stream.write(b'{"comparison": "ab')
    with voting(file) as (process, address):
        page = opened(address)
        compared(page, 2)
        assert page.inner_text("#prompt") == "prompt 2"
        page.keyboard.press("u")  # also what was voted before the kill
        compared(page, 1)
        page.keyboard.press("ArrowRight")
        compared(page, 2)
        page.click("#finish")
        says(page, "You can close this page")
        said = process.communicate(timeout=20)
        assert process.returncode == 0, said
    assert "so far: 2 of 4 comparisons voted on: 2 pairs, 0 ties, 0 skipped" in said[1]
    assert f"qdpo pairs vote {file} --out {out}" in said[1]
    assert f"qdpo train --model MODEL --data {out}" in said[1]
    assert "Traceback" not in said[1]
    assert [row["prompt"] for row in rows_of(out)] == ["prompt 0", "prompt 1"]
    assert [row["vote"] for row in rows_of(log_of(out))] == ["left", "right", "undo", "right"]
