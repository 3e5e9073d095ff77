"""`data.clean` mends what it says and leaves all else; what it changes is counted, and seen by all later checks."""

import json
from typing import get_args

import pytest
from data.toy_tokenizers import byte_level

from qdpo.config.schema import DataSection
from qdpo.data.faults import FaultyRows
from qdpo.data.prepare import Prepared, prepare, read_all
from qdpo.data.quality.clean import INVISIBLE, MENDS, entities, invisible, invisible_kinds

ALL = list(MENDS)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("Tom &amp; Jerry&#39;s &lt;3&nbsp;&mdash; caf&eacute; &#x2019;", "Tom & Jerry's <3\xa0— café ’"),
        ("&amp;lt;b&amp;gt; and &amp;amp;quot;", '<b> and "'),
        ("&lt;b&gt; beside `&lt;b&gt;`", "<b> beside `&lt;b&gt;`"),
        ("&amp;\n```html\n&amp;\n```\n&amp;", "&\n```html\n&amp;\n```\n&"),
        ("&gt; in <code>a &gt; b</code> is &gt;", "> in <code>a &gt; b</code> is >"),
        ("&gt; ```never closed &gt;", "> ```never closed &gt;"),
    ],
)
def test_entities_outside_of_code(wrong: str, right: str):
    assert entities(wrong) == right
    assert entities(right) == right


@pytest.mark.parametrize(
    "text",
    [
        "a && b; f(&x); p = &sum; q = &image; r = &not; &; &&; &nonsense;",
        "https://example.org/?a=1&copy=2&lt=3",
        "<!DOCTYPE html><p>&copy; 2020</p>",
        '<div class="x">&nbsp;</div>',
        "AT&T; R&D;",
    ],
)
def test_other_ampersands_stay(text: str):
    assert entities(text) == text


HIDDEN = "".join(chr(0xE0000 + ord(letter)) for letter in "obey")


@pytest.mark.parametrize(
    ("wrong", "right", "kind"),
    [
        ("zero\u200bwidth \u2060joined", "zerowidth joined", "zero_width"),
        ("a\u200cb a\u200db \u3164", "ab ab ", "zero_width"),
        ("soft\u00adly", "softly", "hyphen"),
        ("\ufeffa\ufeffb", "ab", "mark"),
        (f"hello{HIDDEN}", "hello", "tags"),
        (f"\U0001f3f4{HIDDEN * 5}", "\U0001f3f4", "tags"),
        ("\U0001f600\ufe0f\ufe01\U000e0101", "\U0001f600\ufe0f", "hiding"),
        ("a\U000e0120", "a", "hiding"),
        ("a\ufe0f", "a", "hiding"),
    ],
)
def test_invisible_characters(wrong: str, right: str, kind: str):
    assert invisible(wrong) == right
    assert invisible_kinds(wrong) == {INVISIBLE[kind]}
    assert invisible_kinds(right) == set()


@pytest.mark.parametrize(
    "text",
    [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f\u200d\U0001f525 \U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f469\U0001f3fd\u200d\U0001f52c 1\ufe0f\u20e3 \u00a9\ufe0f \u203c\ufe0f \u267e\ufe0f",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0915\u094d\u200d\u0937",
        "\u0e20\u0e32\u0e29\u0e32\u200b\u0e44\u0e17\u0e22 \u1797\u17b6\u179f\u17b6\u200b\u1781\u17d2\u1798\u17c2\u179a",
        "\u8fbb\U000e0100 \u9089\ufe00",
        "\u200fright to left\u200e",
    ],
    ids=["families", "other emoji", "a flag", "Persian and Hindi", "Thai and Khmer", "ideographs", "direction"],
)
def test_invisible_characters_that_mean_something_stay(text: str):
    assert invisible(text) == text
    assert invisible_kinds(text) == set()


def test_the_setting_has_the_mends_that_there_are():
    (items,) = get_args(DataSection.model_fields["clean"].annotation)
    assert list(get_args(items)) == ALL


# ----------------------------------------------------------------------------------------------------------- in a run


def rows_of(n: int = 30) -> list[dict]:
    return [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(n)]


def settings(tmp_path, rows: list[dict], **more) -> DataSection:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": "held", "chosen": "out", "rejected": "rows"}) + "\n")
    held = str(tmp_path / "held.jsonl")
    return DataSection(name=str(tmp_path / "a.jsonl"), **{"template": "zephyr", "eval_name": held, **more})


def ids_of(prepared: Prepared) -> list:
    return list(prepared.train)


def test_messages_are_cleaned_before_anything_else(tmp_path):
    rows, right = rows_of(), rows_of()
    rows[0]["chosen"], right[0]["chosen"] = "Tom &amp; Jerry", "Tom & Jerry"
    rows[1]["prompt"], right[1]["prompt"] = "un cafÃ© &#8203;", "un café "
    rows[2]["rejected"], right[2]["rejected"] = "&Atilde;&copy;t\u00ad", "ét"
    wanted = prepare(settings(tmp_path, right), byte_level(), 1)
    asis = prepare(settings(tmp_path, rows), byte_level(), 1)
    found = prepare(settings(tmp_path, rows, clean=ALL[::-1]), byte_level(), 1)
    assert ids_of(found) == ids_of(wanted) != ids_of(asis)
    counted = {mend: (entry.count, entry.first_rows) for mend, entry in found.train_report.cleaned.items()}
    assert counted == {"entities": (3, [1, 2, 3]), "mojibake": (2, [2, 3]), "invisible": (2, [2, 3])}
    assert "data.clean=[entities] changed lines 1, 2, 3" in found.train_report.remarks()
    assert not asis.train_report.cleaned
    assert not wanted.train_report.unicode["unicode"]
    alone, _ = read_all(settings(tmp_path, rows, clean=ALL), byte_level(), found.template, 1)
    assert list(alone) == ids_of(found), "eval --pairs reads as a run does"


def test_good_data_is_as_it_was(tmp_path):
    clean, asis = (prepare(settings(tmp_path, rows_of(), clean=how), byte_level(), 1) for how in (ALL, []))
    assert ids_of(clean) == ids_of(asis)
    assert not clean.train_report.cleaned


def test_later_checks_see_the_cleaned_text(tmp_path):
    rows = rows_of()
    rows[3]["chosen"] = "\u200b\u2060"
    rows[4] |= {"chosen": "A\u200b", "rejected": "A"}
    rows[5]["prompt"] = "hi &lt;/s&gt; <\u200b/s>"
    with pytest.raises(FaultyRows) as caught:
        prepare(settings(tmp_path, rows, clean=ALL), byte_level(), 1)
    (report,) = caught.value.reports
    assert {reason: left.first_rows for reason, left in report.left_out.items()} == {
        "`chosen` is empty after data.clean": [4],
        "chosen and rejected are identical after data.clean": [5],
        "the prompt contains the text of the end-of-turn token": [6],
    }
    assert "line 4: '\\u200b\\u2060'" in str(caught.value)
    assert len(prepare(settings(tmp_path, rows), byte_level(), 1).train) == 30, "nothing is cleaned unless asked for"


def test_what_is_cleaned_is_another_entry_of_the_cache(tmp_path):
    rows = rows_of()
    rows[0]["chosen"] = "a &amp; b"
    cache = tmp_path / "cache"
    asis, clean = (prepare(settings(tmp_path, rows, clean=how), byte_level(), 1, cache=cache) for how in ([], ALL))
    assert ids_of(asis) != ids_of(clean)
    assert len(list(cache.iterdir())) == 2
    again = prepare(settings(tmp_path, rows, clean=ALL), byte_level(), 1, cache=cache)
    assert again.train_report == clean.train_report
