"""What the report says of datasets whose faults are known because they were put there."""

import json

import numpy as np
import pytest
from data.toy_tokenizers import byte_level

from qdpo.config.schema import DataSection
from qdpo.data.pairs import Message, Pair
from qdpo.data.prepare import Prepared, prepare
from qdpo.data.quality.contamination import EvaluationSet, load_sets, words_of
from qdpo.data.quality.measures import length_bias
from qdpo.data.report import DataReport
from qdpo.errors import ConfigError, DataError


def row(prompt: str, chosen: str, rejected: str, **more) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def many(n: int = 60) -> list[dict]:
    names = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    return [
        row(f"{names[i % 10]} {names[i // 10]} {i}", f"{names[i % 7]} yes {i}", f"{names[i % 3]} no {i}")
        for i in range(n)
    ]


def prepared(tmp_path, rows: list[dict], **settings) -> Prepared:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return prepare(DataSection(name=str(path), **{"template": "zephyr", **settings}), byte_level(), 1)


def report(tmp_path, rows: list[dict], **settings) -> DataReport:
    """The report on all of `rows`: what is held out is put at the end, with prompts of its own."""
    (tmp_path / "held.jsonl").write_text(json.dumps(row("held", "out", "rows")) + "\n")
    return prepared(tmp_path, rows, eval_name=str(tmp_path / "held.jsonl"), **settings).train_report


def test_the_split_has_no_prompt_on_both_sides_and_depends_on_the_seed(tmp_path):
    rows = [row(f"question {i // 3}", f"yes {i}", f"no {i}") for i in range(90)]
    data = prepared(tmp_path, rows, eval_fraction=0.2)
    prompts = [{tuple(pair.prompt) for pair in part} for part in (data.train, data.heldout)]
    assert not prompts[0] & prompts[1]
    assert [len(part) for part in (data.train, data.heldout)] == [72, 18]
    assert data.heldout_report.prompts["in_other_split"] == 0
    config = DataSection(name=str(tmp_path / "a.jsonl"), template="zephyr", eval_fraction=0.2)
    again, other = (prepare(config, byte_level(), seed) for seed in (1, 2))
    assert list(again.heldout) == list(data.heldout)
    assert list(other.heldout) != list(data.heldout)


def test_prompts_that_differ_in_case_space_or_form_are_on_one_side(tmp_path):
    """A file whose prompts come again with trailing spaces: as different prompts, most would be on both sides."""
    forms = ("{}", "{}  ", " {}\n", "{}", "{}")
    rows = [row(forms[i % 5].format(f"Question \uff11 {i // 5} caf\u00e9"), f"yes {i}", f"no {i}") for i in range(150)]
    rows += [row(f"question 1 {i} CAFE\u0301", f"yes {i}", f"no {i}") for i in range(30)]
    data = prepared(tmp_path, rows, eval_fraction=0.2)
    sides = [{int(rows[pair.row - 1]["prompt"].split()[2]) for pair in part} for part in (data.train, data.heldout)]
    assert len(sides[0]) + len(sides[1]) == 30
    assert not sides[0] & sides[1]
    assert data.train_report.duplicates["exact"]["count"] == 0, "pairs are doubles only to the letter"


@pytest.mark.parametrize(
    "extra",
    [
        {"prompt": [{"role": "user", "content": "a"}]},
        {"prompt": [{"from": "human", "value": "a"}]},
        {"chosen": [{"role": "assistant", "content": "b"}]},
        {"system": "Be brief."},
    ],
    ids=["messages", "ShareGPT", "an answer as a message", "a system message"],
)
def test_conversations_are_not_written_as_plain_text(tmp_path, extra: dict):
    rows = [row("a", "b", "c"), {**row("d", "e", "f"), **extra}]
    with pytest.raises(ConfigError, match="none writes plain text without roles, and line 2 is") as caught:
        prepared(tmp_path, rows, template="none", eval_fraction=0.4)
    assert "data.template=auto" in str(caught.value.hint)
    assert prepared(tmp_path, [row("a", "b", "c"), row("d", "e", "f")], template="none", eval_fraction=0.4)


def test_prompts_in_both_of_a_datasets_own_splits_are_counted(tmp_path):
    rows = many()
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows[:3], row("new", "a", "b")]))
    data = prepared(tmp_path, rows, eval_name=str(tmp_path / "held.jsonl"))
    assert data.heldout_report.prompts["in_other_split"] == 3
    remark = "3 of these pairs have a prompt that the training pairs have too, up to case and white space"
    assert remark in data.heldout_report.remarks()
    assert len(data.train) == 60


def test_duplicates_and_conflicts(tmp_path):
    rows = many()
    turned = row(rows[5]["prompt"], rows[5]["rejected"], rows[5]["chosen"])
    found = report(tmp_path, [*rows, rows[3], rows[3], turned])
    assert found.duplicates["exact"] == {"count": 2, "first_rows": [61, 62]}
    assert found.conflicts == {"count": 2, "first_rows": [6, 63]}
    clean = report(tmp_path, rows)
    assert clean.duplicates["exact"]["count"] == clean.conflicts["count"] == 0


def test_near_duplicates(tmp_path):
    text = " ".join(f"word{i}" for i in range(200))
    rows = [*many(), row(text, "yes", "no"), row(text + " more", "yes", "no"), row(text.upper() + "!", "yes", "no")]
    near = report(tmp_path, rows).duplicates["near"]
    assert (near["looked_at"], near["count"]) == (63, 2)
    assert [pair[0] for pair in near["examples"]] == [62, 63]
    assert report(tmp_path, many()).duplicates["near"]["count"] == 0


def test_length_bias_by_hand():
    chosen, rejected = np.array([3, 5, 2, 9]), np.array([1, 5, 4, 6])
    expected = np.mean([(c > r) + 0.5 * (c == r) for c in chosen for r in rejected])
    assert length_bias(chosen, rejected) == {"chosen_longer": 0.5, "as_long": 0.25, "auc": expected}
    assert length_bias(rejected, chosen)["auc"] == 1 - expected


def test_length_is_remarked_on(tmp_path):
    rows = [row(r["prompt"], "yes " * 9 + str(i), "no") for i, r in enumerate(many())]
    found = report(tmp_path, rows)
    assert found.length_bias["auc"] == 1
    assert "AUC of 1.00" in found.remarks()[0]
    counts = found.histogram["chosen"]["counts"]
    assert sum(counts) == 60
    assert len(counts) == len(found.histogram["chosen"]["edges"]) - 1


@pytest.mark.parametrize(("long", "said"), [(6, False), (7, True)])
def test_answers_that_are_often_cut_are_remarked_on(tmp_path, long: int, said: bool):
    rows = [{**r, "rejected": r["rejected"] + " and so on" * 40 * (i < long)} for i, r in enumerate(many())]
    found = report(tmp_path, rows, max_length=128, max_prompt_length=64)
    assert found.cut["rejected"] == long
    sentence = f"of 60 pairs 0 chosen and {long} rejected answers are cut and have no end: raise data.max_length"
    assert (sentence in found.remarks()) is said


def test_system_messages_that_are_cut_are_remarked_on(tmp_path):
    rows = [{**r, "system": "Be brief. " * (30 if i in (3, 5) else 1)} for i, r in enumerate(many())]
    found = report(tmp_path, rows, max_length=256, max_prompt_length=128)
    assert (found.cut["system message"], found.cut_rows["system message"]) == (2, [4, 6])
    said = "of 60 pairs 2 have a system message that is cut, or cut away (lines 4, 6): raise data.max_prompt_length"
    assert said in found.remarks()
    assert not any("system message" in remark for remark in report(tmp_path, rows).remarks())


def test_length_is_measured_before_cutting(tmp_path):
    rows = [row(r["prompt"], f"{i} " + "yes " * 90, f"{i} " + "no, " * 70) for i, r in enumerate(many())]
    found = report(tmp_path, rows, max_length=96, max_prompt_length=64)
    assert found.tokens["chosen"] == found.tokens["rejected"]
    assert found.length_bias == {"chosen_longer": 1.0, "as_long": 0.0, "auc": 1.0}


def test_scores(tmp_path):
    rows = [r | {"score_chosen": 5, "score_rejected": score} for r, score in zip(many(), [5, 6, 1] * 20, strict=True)]
    found = report(tmp_path, rows)
    assert found.scores == {
        "scored": 60,
        "ties": 20,
        "chosen_is_lower": {"count": 20, "first_rows": [2, 5, 8, 11, 14]},
    }
    dropped = report(tmp_path, rows, ties="drop")
    assert dropped.pairs == 40
    assert dropped.left_out["chosen and rejected have the same score"].count == 20
    assert dropped.left_out["chosen and rejected have the same score"].inherent


def test_odd_characters(tmp_path):
    rows = many()
    for place, odd in enumerate(["\x00", "\r\n", "\ufeff", "\u202e", "\ufffd"]):
        rows[place]["chosen"] = f"a{odd}b"
    rows[9]["chosen"] = "Это ответ"
    found = report(tmp_path, rows).unicode
    assert found["unicode"] == {
        "NUL": {"count": 1, "first_rows": [1]},
        "carriage return (CRLF)": {"count": 1, "first_rows": [2]},
        "byte order mark": {"count": 1, "first_rows": [3]},
        "direction mark": {"count": 1, "first_rows": [4]},
        "replacement character": {"count": 1, "first_rows": [5]},
        "the answers are in different scripts": {"count": 1, "first_rows": [10]},
    }
    assert found["scripts"] == {"Latin": 59, "Cyrillic": 1}


@pytest.mark.parametrize(("same", "other", "said"), [(6, 0, False), (7, 0, True), (30, 15, True), (30, 16, False)])
def test_one_answer_to_many_prompts_is_remarked_on(tmp_path, same: int, other: int, said: bool):
    """More than a tenth of the pairs, and twice as often as on the other side: a `yes` may be right and wrong."""
    rows = [{**r, "rejected": "I do not know."} if i < same else r for i, r in enumerate(many())]
    rows = [{**r, "chosen": "I do not know."} if i >= 60 - other else r for i, r in enumerate(rows)]
    found = report(tmp_path, rows)
    expected = {"count": same, "first_rows": [1, 2, 3, 4, 5], "chosen": other} if same > 6 else {}
    assert found.constant["rejected"] == expected
    sentence = f"of 60 pairs {same} have one and the same rejected answer (lines 1, 2, 3, 4, 5 and {same - 5} more)"
    assert (f"{sentence}; it is the chosen one of {other}" in found.remarks()) is said


def test_mixtures(tmp_path):
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"question": f"b {i}", "chosen": "yes", "rejected": "no"}) + "\n" for i in range(40))
    )
    (tmp_path / "c.csv").write_text("prompt,chosen,rejected\nc 1,yes,no\nc 2,yes,\n")
    found = report(
        tmp_path,
        many(),
        mixture={str(tmp_path / "b.jsonl"): 0.25, str(tmp_path / "c.csv"): 2, str(tmp_path / "a.jsonl"): 0.5},
        on_bad_row="drop",
    )
    assert [(entry["pairs"], entry["weight"], entry["format"]) for entry in found.sources] == [
        (60, 0.5, "pairs"),
        (40, 0.25, "orca"),
        (1, 2, "pairs"),
    ]
    assert found.pairs == 30 + 10 + 2
    assert found.left_out["`rejected` is empty"].first_rows == [f"{tmp_path / 'c.csv'}:3"]


def test_a_report_survives_json(tmp_path):
    found = report(tmp_path, [*many(), row("", "", "x")], on_bad_row="drop")
    assert found.left_out["`chosen` is empty"].first_rows == [61]
    assert DataReport.from_dict(json.loads(json.dumps(found.as_dict()))) == found


# ------------------------------------------------------------------------------------------------------- contamination


def test_words_ignore_case_and_punctuation():
    assert words_of("The ﬁrst — “Word”, isn't IT?") == ["the", "first", "word", "isn", "t", "it"]


def item(n: int, start: int = 0) -> str:
    return " ".join(f"w{i}" for i in range(start, start + n))


@pytest.mark.parametrize(
    ("text", "whole", "by_13", "by_8"),
    [
        (item(20), 1, 1, 1),
        ("before " + item(20).upper().replace(" ", ", ") + " after", 0, 1, 1),
        ("x " + item(13) + " y", 0, 1, 1),
        ("x " + item(12) + " y", 0, 0, 1),
        ("x " + item(8) + " y", 0, 0, 1),
        ("x " + item(7) + " y", 0, 0, 0),
    ],
)
@pytest.mark.parametrize("where", ["prompt", "chosen", "rejected", "across"])
def test_what_touches_an_item(where: str, text: str, whole: int, by_13: int, by_8: int):
    found = EvaluationSet("test", "text", [item(20), item(20, 100), "short"])
    texts = {"prompt": "a", "chosen": "b", "rejected": "c"}
    if where == "across":
        first, _, rest = text.partition(" w3")
        texts |= {"prompt": first, "chosen": ("w3" + rest) if rest else "b"}
    else:
        texts[where] = text
    pair = Pair(
        5, (Message("user", texts["prompt"]),), *((Message("assistant", texts[s]),) for s in ("chosen", "rejected"))
    )
    from qdpo.data.quality.contamination import texts_of

    found.observe(texts_of(pair), 0)
    described = found.as_dict(frozenset([0]), {0: 5})
    counts = {key: entry["count"] for key, entry in described["touched"].items()}
    if where in ("prompt", "across"):
        assert counts["whole"] == whole
    assert (counts["words_13"], counts["words_8"]) == (by_13, by_8)
    assert found.as_dict(frozenset([1]), {1: 6})["touched"]["words_8"]["count"] == 0, "a pair that is not trained on"
    assert described["long_enough"] == {"words_13": 2, "words_8": 2}
    if by_8:
        assert described["examples"] == [{"item": 0, "text": item(20), "row": 5}]


def test_winogrande_against_winogrande(tmp_path):
    sentence = "The trophy did not fit into the brown suitcase because the _ was far too large for it."
    gap = {"sentence": sentence, "option1": "trophy", "option2": "suitcase", "answer": "1"}
    other = {"sentence": "Nobody here has ever seen the _ before.", "option1": "a", "option2": "b", "answer": "2"}
    (tmp_path / "dev.jsonl").write_text(json.dumps(gap) + "\n" + json.dumps(other) + "\n")
    extra = [
        {"sentence": f"Sentence {i} has a _ in it.", "option1": "x", "option2": "y", "answer": "2"} for i in range(9)
    ]
    found = report(tmp_path, [gap, *extra], template="none", contamination=[str(tmp_path / "dev.jsonl")])
    (entry,) = found.contamination
    assert (entry["column"], entry["items"]) == ("sentence", 2)
    assert {key: value["count"] for key, value in entry["touched"].items()} == {"whole": 1, "words_13": 1, "words_8": 1}
    assert entry["examples"][0]["row"] == 1
    assert "of the 2 items of" in found.remarks()[-1]
    assert "1 (50.0%) whole" in found.remarks()[-1]
    clean = report(tmp_path, extra, template="none", contamination=[str(tmp_path / "dev.jsonl")])
    assert clean.remarks()[-1].startswith("of the 2 items of")
    assert "none occurs in the training pairs" in clean.remarks()[-1]


def test_columns_of_evaluation_sets(tmp_path):
    (tmp_path / "a.csv").write_text("id,question,answer\n1,What is it?,That\n")
    (tmp_path / "b.jsonl").write_text('{"n": 1, "short": "x", "body": "the longest text here"}\n')
    sets = load_sets([str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl"), f"{tmp_path / 'a.csv'}#answer"])
    assert [(found.column, found.items) for found in sets] == [
        ("question", ["What is it?"]),
        ("body", ["the longest text here"]),
        ("answer", ["That"]),
    ]
    with pytest.raises(DataError, match="no text in a column `nope`"):
        load_sets([f"{tmp_path / 'a.csv'}#nope"])
    (tmp_path / "c.jsonl").write_text('{"n": 1}\n')
    with pytest.raises(DataError, match="no column with text"):
        load_sets([str(tmp_path / "c.jsonl")])
