"""What tells chosen from rejected without the prompt: leaks that were put there are found, and nothing else is."""

import json
import random
import zipfile

import pytest
from data.test_report import report, row
from materials import MATERIAL

from qdpo.data.ingest import keys_of
from qdpo.data.pairs import Message, Pair
from qdpo.data.quality.separable import LOOKED_AT, Separable
from qdpo.data.report import DataReport
from qdpo.evaluation.statistics import wilson
from qdpo.intervals import wilson_interval
from qdpo.model.source import ASSETS

WORDS = ["the", "a", "of", "road", "river", "hill", "house", "tree", "stone", "light", "rain", "wind", "old", "new"]


def text(draw: random.Random, least: int = 8, most: int = 30) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most))).capitalize() + draw.choice(".!?")


def plain(count: int = 300, seed: int = 1) -> list[tuple[str, str, str]]:
    """Prompts with two answers that differ in nothing but chance."""
    draw = random.Random(seed)
    return [(f"Question {n}: {text(draw)}", text(draw), text(draw)) for n in range(count)]


def pair(number: int, prompt: str, chosen: str, rejected: str) -> Pair:
    asked = (Message("user", prompt),) if prompt else ()
    return Pair(number, asked, (Message("assistant", chosen),), (Message("assistant", rejected),))


def looked_at(rows: list[tuple[str, str, str]]) -> DataReport:
    """A report that has looked at nothing but this."""
    separable = Separable()
    for number, parts in enumerate(rows, 1):
        found = pair(number, *parts)
        separable.observe(found, found.row, keys_of(found)[3])
    return DataReport("a", unit="line", separable=separable.as_dict())


def test_answers_that_differ_by_chance_alone_are_not_told_apart():
    shares = []
    for seed in range(5):
        found = looked_at(plain(300, seed))
        assert found.separable["features"] == found.remarks() == found.warnings() == []
        shares.append(found.separable["share"])
    assert max(abs(share - 0.5) for share in shares) < 0.1, shares
    assert abs(sum(shares) / 5 - 0.5) < 0.04, shares


# A mark on the rejected answer's text, and what it must be called.
LEAKS = {
    "a role that was left in": (lambda t: f"assistant\r\n{t}", 'begins with "assistant\\r\\n"'),
    "a space": (lambda t: f" {t}", "begins with white space"),
    "a line end": (lambda t: f"{t}\n", 'ends with "\\n"'),
    "a signature": (lambda t: f"{t} ~", 'ends with "~"'),
    "thinking": (lambda t: f"<think>\nwell\n</think>{t}", "has a tag of thinking"),
    "refusals": (lambda t: f"{t[:9]} I'm sorry {t}", "has a phrase of refusal"),
    "a list": (lambda t: f"{t[:9]}\n- {t}", "has a list"),
    "headings": (lambda t: f"{t[:9]}\n## {t}", "has a heading"),
    "bold": (lambda t: f"{t[:9]} **{t}", "has bold text"),
    "code": (lambda t: f"{t[:9]}\n```\n{t}", "has a block of code"),
    "a table": (lambda t: f"{t[:9]}\n| a |\n{t}", "has a table"),
    "one answer for all": (lambda t: "N/A", 'is "N/A"'),
    "small letters": (lambda t: t.lower(), "begins with a small letter"),
    "another script": (lambda t: "".join(chr(0x410 + ord(c) % 32) if c.isalpha() else c for c in t), "is written in"),
    "length": (lambda t: f"{t[:-1]} {t[:-1]} {t} {WORDS[len(t) % 9]}."[-400:], "is the longer one"),
}


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_leak_is_found_and_named(name: str, side: str):
    spoil, called = LEAKS[name]
    rows = [
        (prompt, spoil(one), other) if side == "chosen" else (prompt, one, spoil(other))
        for prompt, one, other in plain(120)
    ]
    found = looked_at(rows)
    assert found.separable["low"] > 0.9, found.separable
    (warning,) = found.warnings()
    assert warning in found.remarks()
    assert warning.startswith("the pairs can be told apart without reading the prompt: the answers alone tell")
    assert "of 120 pairs" in warning
    names = [feature["feature"] for feature in found.separable["features"]]
    assert any(called in each for each in names), names


def test_a_leak_in_part_of_the_pairs_is_named_with_its_counts_and_rows():
    # as in a published set: 227 of 560 rejected answers begin with the role's name, no chosen one does
    draw = random.Random(2)
    leaky = set(draw.sample(range(560), 227))
    rows = [(p, c, f"assistant\r\n{r}" if n in leaky else r) for n, (p, c, r) in enumerate(plain(560))]
    found = looked_at(rows)
    first = [n + 1 for n in sorted(leaky)[:5]]
    assert found.separable["features"] == [
        {"feature": 'begins with "assistant\\r\\n"', "chosen": 0, "rejected": 227, "first_rows": first}
    ]
    assert found.separable["low"] < 0.75, "the others cannot be told apart"
    numbers = ", ".join(map(str, first))
    assert found.remarks() == [
        'of 560 pairs: only the rejected answer begins with "assistant\\r\\n" in 227 '
        f"(lines {numbers} and 222 more), only the chosen one in 0"
    ]
    assert not found.warnings()


def test_labels_given_by_chance_hide_a_leak():
    draw = random.Random(3)
    sides = [(p, c, f"assistant\r\n{r}") for p, c, r in plain(560)]
    found = looked_at([(p, r, c) if draw.random() < 0.5 else (p, c, r) for p, c, r in sides])
    assert abs(found.separable["share"] - 0.5) < 0.06
    assert not found.remarks()


def test_between_the_two_bars_it_is_a_remark_and_no_warning():
    rows = [(p, c, f" {r}" if n % 4 else r) for n, (p, c, r) in enumerate(plain(400))]
    found = looked_at(rows)
    assert 0.75 < found.separable["low"] < 0.9
    (remark,) = found.remarks()
    assert remark.startswith("the answers alone tell chosen from rejected in ")
    assert "only the rejected answer begins with white space in 300" in remark
    assert not found.warnings()


@pytest.mark.parametrize(("prompts", "said"), [(29, False), (30, True)])
def test_nothing_is_said_of_fewer_than_thirty_prompts(prompts: int, said: bool):
    rows = [(p, c, f" {r}") for p, c, r in plain(prompts)]
    assert bool(looked_at(rows).separable) is said
    # more pairs of as many prompts are no more evidence
    again = [(p, f"{c} {n}", r) for n in range(3) for p, c, r in rows]
    assert bool(looked_at(again).separable) is said


def test_answers_learned_by_heart_do_not_count():
    # each prompt has ten pairs with one chosen answer: a model that has seen the prompt knows it
    rows = plain(400)
    found = looked_at([(*rows[n // 10][:2], rejected) for n, (_, _, rejected) in enumerate(rows)])
    assert found.separable["n"] == 400
    assert found.separable["low"] < 0.75, found.separable


def test_pairs_without_a_prompt_are_passed_over():
    assert looked_at([("", c, f" {r}") for _, c, r in plain()]).separable == {}


def test_a_large_set_is_sampled_and_the_same_again():
    rows = [(p, c, f" {r}") for p, c, r in plain(LOOKED_AT + 2000)]
    found, again = looked_at(rows), looked_at(rows)
    assert found.separable == again.separable
    assert (found.separable["n"], found.separable["seen"]) == (LOOKED_AT, LOOKED_AT + 2000)
    assert f"of {LOOKED_AT:,} pairs (a sample)" in found.warnings()[0]
    assert found.separable["features"][0]["first_rows"] == sorted(found.separable["features"][0]["first_rows"])


def test_what_data_says_is_shown_and_not_obeyed():
    secret = "hf_" + "a1B2" * 9
    found = looked_at([(p, c, f"\x1b[31m{secret} {r}") for p, c, r in plain(60)])
    assert "\x1b" not in found.warnings()[0]
    assert secret not in json.dumps(found.separable)


def test_odd_answers_do_no_harm():
    for one, other in (("a", "b"), (" ", "\n"), ("\ud800", "x" * 5000), ("|" + " " * 5000, "\n" * 5000)):
        assert looked_at([(f"{n}", one, other) for n in range(40)]).separable["share"] == 1.0


def test_the_interval_is_wilsons():
    for right, n in ((0, 30), (17, 40), (30, 30)):
        expected = wilson(right, n)
        assert wilson_interval(right / n, n) == pytest.approx((expected.low, expected.high))


# ---------------------------------------------------------------------------------------------------------- real pairs


def test_no_alarm_on_the_quickstarts_pairs():
    rows = [json.loads(line) for line in (ASSETS / "pairs" / "train.jsonl").read_text().splitlines()]
    found = looked_at([(r["prompt"], r["chosen"], r["rejected"]) for r in rows])
    assert found.separable["n"] == 1188
    assert 0.65 < found.separable["low"] < 0.75, "nouns have their roles, which single words show in part"
    assert not found.remarks()


def test_no_alarm_on_blimp():
    """Sentences without a prompt: all there is to tell them apart by is what they are."""
    with zipfile.ZipFile(MATERIAL / "blimp" / "BLiMP-4-of-67.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jsonl")]
        rows = [json.loads(line) for name in names for line in archive.read(name).decode().splitlines()]
    assert len(rows) == 4000
    assert looked_at([("", r["sentence_good"], r["sentence_bad"]) for r in rows]).remarks() == []


# --------------------------------------------------------------------------------------------------------- in a report


def test_the_report_has_it_and_keeps_it(tmp_path):
    rows = [row(p, c, f"assistant\n{r}") for p, c, r in plain(60)]
    found = report(tmp_path, rows)
    assert found.separable["share"] == 1.0
    assert found.warnings()[0] in found.remarks()
    assert DataReport.from_dict(json.loads(json.dumps(found.as_dict()))).warnings() == found.warnings()
    clean = report(tmp_path, [row(*parts) for parts in plain(60)])
    assert clean.separable["n"] == 60
    assert not clean.warnings()
