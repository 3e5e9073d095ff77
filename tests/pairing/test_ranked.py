"""From ratings to pairs: every shape, what becomes no pair and why, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pairing.polls import rows_of, write_rows

from qdpo.api.pairing import pairs_from_ratings
from qdpo.data.faults import FaultyRows
from qdpo.data.schemas.formats import recognise
from qdpo.data.schemas.reader import RowReader
from qdpo.errors import ConfigError, DataError, OutputError, UsageError
from qdpo.pairing.ranked import Ranked

SCORED = [("4", 5), ("5", 1), ("four", 4)]


def ranked(folder: Path, rows: list[Any], **how: Any) -> Ranked:
    """What becomes of rows; the file that is written is read as a run would."""
    ratings, out = write_rows(folder / "ratings.jsonl", rows), folder / "pairs.jsonl"
    out.unlink(missing_ok=True)
    found = pairs_from_ratings(ratings, out, **how)
    reader = RowReader(rows_of(out), "x")
    assert reader.format.name == "pairs"
    for number, (row, pair) in enumerate(zip(rows_of(out), found.pairs, strict=True)):
        read = reader.pair(row, number)
        assert (read.prompt, read.scores) == (pair.prompt, pair.scores)
        assert (read.chosen[0].content, read.rejected[0].content) == (pair.chosen, pair.rejected)
    return found


def texts(found: Ranked) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in found.pairs]


CONVERSATION = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    ("rows", "known_by"),
    [
        ([{"prompt": "q", "completion": "a", "score": s} for s in (1,)], "scores: columns prompt, completion, score"),
        ([{"question": "q", "response": "a", "rating": "2.5"}], "scores: columns question, response, rating"),
        ([{"prompt": CONVERSATION, "completion": [{"role": "assistant", "content": "a"}], "label": True}], "thumbs"),
        ([{"messages": [*CONVERSATION, {"role": "assistant", "content": "a"}], "label": "up"}], "thumbs: columns mess"),
        ([{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "score": 3}], "scores"),
    ],
)
def test_shapes_of_one_answer_a_row(tmp_path: Path, rows: list[Any], known_by: str) -> None:
    worse = json.loads(json.dumps(rows[0]).replace('"a"', '"b"'))
    for name, low in (("score", 0), ("rating", "-1"), ("label", "down" if rows[0].get("label") == "up" else False)):
        if name in worse:
            worse[name] = low
    found = ranked(tmp_path, [worse, *rows])
    assert texts(found) == [("a", "b")]
    assert found.known_by.startswith(known_by)
    assert found.pairs[0].prompt[-1].content == "q"
    assert (found.pairs[0].prompt[0].role == "system") == ("Be brief" in json.dumps(rows))


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": "q",
            "answers": [{"text": "b", "score": 1}, {"text": "a", "score": 9}, {"text": "c", "score": None}],
        },
        {"prompt": "q", "completions": ["b", "a"], "scores": [0.1, 0.9]},
        {"instruction": "q", "responses": ["b", "a"], "ratings": ["1", "2"]},
        {"prompt": "q", "original": "b", "edited": "a"},
        {"prompt": "q", "response": "b", "corrected": "a"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}], "edited": "a"},
    ],
)
def test_shapes_of_a_pair_a_row(tmp_path: Path, row: Any) -> None:
    found = ranked(tmp_path, [row])
    assert texts(found) == [("a", "b")]
    assert found.pairs[0].prompt[-1].content == "q"


def test_csv_and_text_labels(tmp_path: Path) -> None:
    ratings = tmp_path / "r.csv"
    ratings.write_text('prompt,answer,thumb\nq,a,👍\nq,b,FALSE\n"r, s",a,1\n"r, s",b,-1\n')
    assert texts(pairs_from_ratings(ratings, tmp_path / "pairs.jsonl")) == [("a", "b"), ("a", "b")]


def test_alpaca_input_belongs_to_the_prompt(tmp_path: Path) -> None:
    rows = [{"instruction": "Sum up", "input": "a text", "output": o, "score": s} for o, s in (("x", 1), ("y", 2))]
    assert ranked(tmp_path, rows).pairs[0].prompt[0].content == "Sum up\na text"


def test_highest_against_lowest_or_every_pair(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": text, "score": score} for text, score in SCORED]
    assert texts(ranked(tmp_path, rows)) == [("4", "5")]
    assert ranked(tmp_path, rows).pairs[0].scores == (5, 1)
    found = ranked(tmp_path, [*rows, {"prompt": "q", "completion": "vier", "score": 4}], all_pairs=True, min_gap=1.5)
    assert texts(found) == [("4", "5"), ("four", "5"), ("vier", "5")]
    assert found.combinations_left_out == {"scores differ by less than 1.5": 2, "equal scores": 1}


def test_what_becomes_no_pair_is_counted_and_named(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": text, "score": score} for text, score in SCORED]
    rows += [{"prompt": "tie", "completion": text, "score": 3} for text in "ab"]
    rows += [{"prompt": "close", "completion": text, "score": score} for text, score in (("a", 3), ("b", 3.4))]
    rows += [{"prompt": f"lone {n}\x1b[31m", "completion": "a", "score": 3} for n in range(4)]
    rows += [{"prompt": "unrated", "completion": "a", "score": None}]
    found = ranked(tmp_path, rows, min_gap=0.5)
    assert texts(found) == [("4", "5")]
    assert found.sentences() == [
        "1 of 12 rows left out: not rated",
        '1 of 7 prompts left out: all scores are equal ("tie")',
        '1 of 7 prompts left out: scores differ by less than 0.5 ("close")',
        '4 of 7 prompts left out: one rated answer only ("lone 0\\x1b[31m"; "lone 1\\x1b[31m"; "lone 2\\x1b[31m"; ...)',
    ]
    # without a gap the close ones are a pair
    assert len(ranked(tmp_path, rows).pairs) == 2


def test_prompts_with_one_label_only(tmp_path: Path) -> None:
    labels = {"both": (True, False), "up": (True, True), "down": (False, False)}
    rows = [
        {"prompt": prompt, "completion": f"{prompt} {n}", "label": label}
        for prompt, given in labels.items()
        for n, label in enumerate(given)
    ]
    found = ranked(tmp_path, rows)
    assert texts(found) == [("both 0", "both 1")]
    assert {reason: len(prompts) for reason, prompts in found.prompts_left_out.items()} == {
        "only thumbs up": 1,
        "only thumbs down": 1,
    }


def test_an_answer_that_several_people_rate(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": t, "score": s} for t, s in (("a", 1), ("b", 3), ("a", 5), ("a", 6))]
    found = ranked(tmp_path, rows)
    assert found.pairs[0].scores == (4, 3)
    assert "1 answer was rated more than once: the mean counts" in found.sentences()


def test_votes_that_were_taken_back(tmp_path: Path) -> None:
    def line(name: str, vote: str, **more: str) -> dict[str, Any]:
        sides = {"left": {"text": "l", "by": "run"}, "right": {"text": "r", "by": "base"}}
        return {"comparison": name, "prompt": [{"role": "user", "content": name}], **sides, "vote": vote, **more}

    rows = [line("a-1", "left"), line("b-1", "right"), {"comparison": "a-1", "vote": "undo"}, line("c-1", "tie")]
    rows += [line("d-1", "edit left", edited="better"), line("e-1", "skip"), line("a-1", "right")]
    found = ranked(tmp_path, rows)
    assert [(pair.prompt[0].content, pair.chosen, pair.rejected) for pair in found.pairs] == [
        ("b-1", "r", "l"),
        ("d-1", "better", "l"),
        ("a-1", "r", "l"),
    ]
    assert found.rows_left_out == {"votes that were taken back": 1, "a tie": 1, "skipped": 1}


GOOD = [{"prompt": "q", "completion": text, "score": score} for text, score in SCORED]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "completion": "", "score": 1}, "`completion` is empty"),
        ({"prompt": "q", "completion": "x", "score": "many"}, "`score` is not a number"),
        ({"prompt": "q", "completion": "x", "score": True}, "`score` is not a number"),
        ({"prompt": "q", "completion": "x", "score": float("nan")}, "`score` is not a number"),
        ({"prompt": None, "completion": "x", "score": 1}, "`prompt` is null"),
        ({"prompt": [], "completion": "x", "score": 1}, "`prompt` is an empty list"),
        (
            {"prompt": [{"role": "assistant", "content": "x"}], "completion": "x", "score": 1},
            "an answer and no question",
        ),
        ({"prompt": "q", "completion": "x"}, "has not the columns of scores"),
        ({"prompt": "q", "completion": ["x"], "score": 1}, "expected messages"),
        ([1], "the row is a list"),
        (7, "the row is a number"),
    ],
)
def test_rows_at_fault(tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(FaultyRows, match=r"1 of 4 rows of .* cannot be used") as error:
        ranked(tmp_path, [*GOOD, row])
    (found,) = error.value.reports[0].reasons
    assert reason in found[0]
    assert found[1].first_rows == [4]
    assert "--drop-bad-rows" in str(error.value)
    assert not (tmp_path / "pairs.jsonl").exists()
    assert len(ranked(tmp_path, [*GOOD, row], drop_bad_rows=True).pairs) == 1


def test_a_number_is_no_thumb(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "label": label} for label in (4.5, 1)]
    with pytest.raises(FaultyRows, match="--column score=label"):
        ranked(tmp_path, rows)
    rows = [{"prompt": "q", "completion": text, "label": label} for text, label in (("a", 4.5), ("b", 1))]
    assert texts(ranked(tmp_path, rows, columns={"score": "label"})) == [("a", "b")]


def test_files_of_other_kinds_say_where_to_go(tmp_path: Path) -> None:
    for row, hint in (
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "these are pairs already: qdpo train"),
        ({"prompt": "p", "answers": ["a", "b"]}, "qdpo pairs vote"),
        ({"q": "p", "a": "b", "stars": 2}, "--column prompt=YOURS"),
    ):
        with pytest.raises(DataError, match="no ratings are known") as error:
            ranked(tmp_path, [row])
        assert hint in str(error.value.hint)
    with pytest.raises(DataError, match="no rows with columns"):
        ranked(tmp_path, [1, 2])
    with pytest.raises(DataError, match="no pair in 1 row; 1 of 1 prompt left out: one rated answer only"):
        ranked(tmp_path, GOOD[:1])


def test_columns_of_ones_own(tmp_path: Path) -> None:
    rows = [{"q": "p", "a": text, "points": score} for text, score in SCORED]
    columns = {"prompt": "q", "completion": "a", "score": "points"}
    assert texts(ranked(tmp_path, rows, columns=columns)) == [("4", "5")]
    with pytest.raises(ConfigError, match="has no column `b`"):
        ranked(tmp_path, rows, columns={**columns, "completion": "b"})
    with pytest.raises(ConfigError, match="qdpo reads no such column"):
        ranked(tmp_path, rows, columns={"points": "points"})


def test_a_gap_is_for_scores(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--min-gap is for scores"):
        ranked(tmp_path, [{"prompt": "q", "original": "b", "edited": "a"}], min_gap=1)


def test_a_file_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    ratings = write_rows(tmp_path / "ratings.jsonl", GOOD)
    before = ratings.read_bytes()
    with pytest.raises(OutputError, match="exists and is left as it is"):
        pairs_from_ratings(ratings, ratings)
    assert ratings.read_bytes() == before


def test_prompts_of_one_file_have_one_form(tmp_path: Path) -> None:
    rows = [*GOOD, *({"prompt": CONVERSATION, "completion": text, "score": score} for text, score in SCORED)]
    ranked(tmp_path, rows)
    assert [type(row["prompt"]) for row in rows_of(tmp_path / "pairs.jsonl")] == [list, list]


@pytest.mark.parametrize(
    ("row", "command"),
    [
        ({"comparison": "a-1", "prompt": "p", "left": "a", "right": "b", "vote": "left"}, "from-ratings"),
        ({"prompt": "p", "completion": "a", "label": True}, "from-ratings"),
        ({"prompt": "p", "answers": ["a", "b"]}, "vote"),
    ],
)
def test_where_pairs_are_wanted_the_step_that_makes_them_is_named(row: Any, command: str) -> None:
    with pytest.raises(DataError, match="no known preference format") as error:
        recognise([row], "auto", "my file.jsonl")
    assert f"qdpo pairs {command} 'my file.jsonl'" in str(error.value)
