"""Text of others in a message or on a terminal: nothing in it is obeyed, and its length has a bound."""

import pytest
from rich.table import Table
from rich.text import Text

from qdpo import console
from qdpo.errors import DataError
from qdpo.foreign import MOST, shortened, shown, visible

HOSTILE = "\x1b[31mred\x1b]0;title\x07 [/bold] [v2] \x9b2J \u202eabc \r\x00"
OBEYED = "\x1b\x07\x9b\u202e\r\x00"


@pytest.mark.parametrize("text", ["plain", "two\nlines\tand a tab", "ünïcödé 漢字 🙂", "[bold] [/red] \\x1b"])
def test_what_no_terminal_obeys_is_left_as_it_is(text: str):
    assert visible(text) == text


def test_what_a_terminal_would_obey_becomes_an_escape():
    assert visible(HOSTILE) == r"\x1b[31mred\x1b]0;title\x07 [/bold] [v2] \x9b2J \u202eabc \x0d\x00"


def test_long_text_keeps_its_ends_and_says_how_much_is_missing():
    text = "begin" + "x" * 100_000 + "end"
    cut = shortened(text, 100)
    assert len(cut) <= 100
    assert cut.startswith("begin")
    assert cut.endswith("end")
    assert "more characters" in cut
    assert shortened("x" * 100, 100) == "x" * 100


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("wizard", '"wizard"'),
        ("two\nlines\x1b", r'"two\nlines\u001b"'),
        ("\u202eabc", r'"\u202eabc"'),
        (None, "null"),
        ({"a": [1, True]}, '{"a": [1, true]}'),
    ],
)
def test_a_value_is_shown_in_one_line(value: object, expected: str):
    assert shown(value) == expected


@pytest.mark.parametrize("value", ["k" * 100_000, {"k" * 100_000: 1}, [["x"] * 50_000], "\x1b" * 100_000])
def test_a_shown_value_has_a_bound(value: object):
    assert len(shown(value)) < 600
    assert "\x1b" not in shown(value)


def table() -> Table:
    made = Table(title=HOSTILE)
    made.add_column(HOSTILE)
    made.add_row(HOSTILE)
    return made


@pytest.mark.parametrize("value", [HOSTILE, Text(HOSTILE), table()], ids=["str", "Text", "table"])
def test_nothing_printed_is_markup_or_obeyed(value: object, capsys: pytest.CaptureFixture[str]):
    console.out().print(value)
    said = capsys.readouterr().out
    assert "[/bold]" in said
    assert "[v2]" in said
    assert not set(said) & set(OBEYED)


@pytest.mark.parametrize("speak", [console.say, console.note, console.warn, console.good])
def test_talk_is_neither_markup_nor_obeyed_and_has_a_bound(speak, capsys: pytest.CaptureFixture[str]):
    speak(HOSTILE + "k" * 200_000)
    said = capsys.readouterr().err
    assert "[/bold] [v2]" in said
    assert not set(said) & set(OBEYED)
    assert len(said) < MOST + 200


def test_an_error_has_a_bound_on_the_terminal_and_in_python(capsys: pytest.CaptureFixture[str]):
    error = DataError("k" * 200_000, "h" * 200_000)
    console.fail(error)
    assert len(capsys.readouterr().err) < 2 * MOST + 200
    assert len(str(error)) < 2 * MOST + 200
