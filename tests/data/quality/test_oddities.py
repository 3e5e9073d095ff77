"""What is odd in a pair is named, and ordinary text is not."""

import base64
import random
import time

import pytest

from qdpo.data.pairs import Message, Pair
from qdpo.data.quality.oddities import ENTITIES, MOJIBAKE, Oddities

HTML = "HTML tags in text that is not HTML"
ENCODED = "long runs of encoded data (base64)"
MISSING = 'an answer that is a word for nothing (such as "nan", "N/A", "[deleted]")'
FAILED = "an answer that is the error of a server or a program"
AGAIN = "an answer that is the prompt again"
BLOB = base64.b64encode(random.Random(1).randbytes(600)).decode()
MIME = "\n".join(BLOB[at : at + 76] for at in range(0, len(BLOB), 76))


def odd(chosen: str, prompt: str = "What is it?", rejected: str = "A thing.") -> set[str]:
    """What is odd in a pair, the scripts of its answers aside."""
    found = Oddities()
    answers = ((Message("assistant", text),) for text in (chosen, rejected))
    found.observe(Pair(7, (Message("user", prompt),), *answers))
    counted = found.as_dict()["unicode"]
    assert all(entry == {"count": 1, "first_rows": [7]} for entry in counted.values())
    return set(counted) - {"the answers are in different scripts"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Tom &amp; Jerry", ENTITIES),
        ("un cafÃ©", MOJIBAKE),
        ("one<br>two<br/>three", HTML),
        ("<p>One.</p>\n<p>Two.</p>", HTML),
        ("It is <b>bold</b>.", HTML),
        ("| a | b |\n|---|---|\nand <br> here", HTML),
        (f"See data:image/png;base64,{BLOB}", ENCODED),
        (f"the file is {BLOB[:240]}", ENCODED),
        (MIME, ENCODED),
        *((text, MISSING) for text in ("nan", "NaN", " None ", "null", "N/A", "n/a\n", "[deleted]", "[removed]")),
        ("Error code: 429 - {'error': {'message': 'Rate limit reached'}}", FAILED),
        ('{"error": {"message": "overloaded", "type": "server_error"}}', FAILED),
        ("I'm sorry, an error occurred while processing your request.", FAILED),
        ("An unexpected error occurred. Please try again later.", FAILED),
        ("Rate limit exceeded, try again in 20s", FAILED),
        ("upstream connect error or disconnect/reset before headers", FAILED),
        ('Traceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1', FAILED),
        ("openai.error.RateLimitError: You exceeded your current quota", FAILED),
        ("502 Bad Gateway", FAILED),
        ("<html>\n<head><title>503 Service Temporarily Unavailable</title></head>", FAILED),
        ("Request timed out.", FAILED),
        ("What is it?\n", AGAIN),
    ],
)
def test_what_is_odd(text: str, name: str):
    assert odd(text) == {name}
    if name in (MISSING, FAILED, AGAIN):
        assert odd("A thing.", rejected=text) == {name}
        assert odd(f"Well: {text}") == set(), "in an answer, not instead of one"
    else:
        assert odd("Yes.", prompt=text) == {name}


@pytest.mark.parametrize(
    "text",
    [
        "Use `&amp;` and `<br>` there:\n```html\n<p>a</p><br>\n```",
        "| a | b |\n|---|---|\n| one<br>two | three |",
        "if a < b and b > c: x <- 3; List<p> y; a<br",
        "The <b> tag makes HTML text bold: <b>so</b>.",
        "<!DOCTYPE html>\n<html><body><p>Hi</p></body></html>",
        "3." + "1415926535" * 100,
        "ACGT" * 200,
        "=" * 500 + "a1" * 300,
        "https://example.org/2024/05/" + "a-long-title-of-a-page-" * 20,
        "/usr/share/" + "some/folder_" * 30,
        "日本語" * 300,
        "None of them.",
        "nano",
        "An error is a mistake.",
        "Error handling matters: check the status.",
        "429 is a prime number? No, 3 times 143.",
        "I'm sorry, I cannot help with that.",
    ],
)
def test_ordinary_text(text: str):
    assert odd(text) == set()


def test_a_question_about_errors_is_answered_with_them():
    assert odd("Traceback (most recent call last): ...", prompt="What does an error look like?") == set()
    assert odd("It shows <br>.", prompt="How do I break a line in HTML?") == set()


def test_a_row_may_be_in_several_counts():
    assert odd("Tom &amp; Jerry<br>cafÃ©", rejected="nan") == {ENTITIES, HTML, MOJIBAKE, MISSING}


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "É»",
            "Ã©",
            "é…»",
            "Ä‘",
            "ðŸ",
            "&amp;",
            "&#",
            "amp;&",
            "`",
            "`a",
            "<pre>",
            "<code>a</pre>",
            "<br",
            "|",
            "|\n",
        ),
        *("a", "aB3" * 23 + "\n", "data:a/", "an ", "\u200b", "\u200d", "\ufe0f", "\U000e0041", "\U0001f3f4\U000e0067"),
    ],
)
def test_no_text_takes_long(piece: str):
    """A text of 100,000 characters that some pattern nearly matches, everywhere."""
    text = piece * (100_000 // len(piece)) + "&amp;<br>"
    started = time.process_time()
    odd(text)
    assert time.process_time() - started < 2
