"""Rows of facts on screens of several widths: no name is ever broken."""

import io

import pytest
from rich.console import Console

from qdpo.listing import Listing

NAME = "alignment-handbook/zephyr-7b-sft-full"
LISTING = Listing(
    ("name", "base", "data", "memory"),
    [("one", NAME, f"{NAME}-data", "24 GiB"), ("two [v2]", "[/bold]", ""), ("three", "x")],
    texts=3,
    title="all of them",
)


def printed(width: int, terminal: bool) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=terminal, no_color=True, markup=False, highlight=False).print(
        LISTING, soft_wrap=not terminal
    )
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_name_is_broken(width: int, terminal: bool):
    said = printed(width, terminal)
    assert "all of them" in said
    assert NAME in said
    assert f"{NAME}-data" in said
    assert "two [v2]" in said
    assert "[/bold]" in said


def test_a_narrow_screen_has_one_fact_a_line():
    lines = [line.rstrip() for line in printed(60, True).splitlines()]
    assert [line for line in lines if "24 GiB" in line] == ["  memory  24 GiB"]
    assert max(map(len, lines)) <= 60


def test_a_wide_screen_and_a_pipe_have_one_row_a_line():
    for said in (printed(200, True), printed(60, False)):
        (line,) = (line for line in said.splitlines() if NAME in line)
        assert f"{NAME}-data" in line
        assert "24 GiB" in line
