"""Choosing by each criterion and by several, what is left out and why, and what makes no sense."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from qdpo.errors import DataError, UsageError
from qdpo.pairing.measure import Measured
from qdpo.pairing.select import LOWER, TWIN, UNSCORED, UNUSABLE, check, parse_keep, select
from qdpo.pairing.select_report import as_dict, means, remarks, tables

N = 10


def measured(**changes: object) -> Measured:
    """Ten pairs in lines 0 to 10 of a file whose line 5 cannot be used."""
    place = np.arange(N)
    return Measured(
        **{  # type: ignore[arg-type]
            "source": "pairs.jsonl",
            "unit": "line",
            "total": 11,
            "faults": {5: "empty `rejected`"},
            "rows": np.array([0, 1, 2, 3, 4, 6, 7, 8, 9, 10]),
            # the first answers differ most
            "characters": np.column_stack([np.full(N, 100), 100 - 5 * (N - place)]),
            "scores": np.column_stack([place % 4, np.zeros(N)]).astype(float),
            "twins": {7: 1},
            "looked_at": N,
            "base": (place - 4) / 10.0,
            "run": (place % 3).astype(float),
            **changes,
        }
    )


def kept(by: str, keep: float | int = 0.3, **changes: object) -> list[int]:
    return select(measured(**changes), by.split(","), keep).rows.tolist()


def test_each_criterion_puts_its_own_pairs_first() -> None:
    assert kept("length") == [8, 9, 10]
    assert kept("base") == [8, 9, 10]
    assert kept("hard") == [0, 1, 2]
    assert kept("score", 2) == [3, 8]
    assert kept("run") == [2, 6, 9]
    assert kept("new", 4) == [0, 3, 7, 10]


def test_several_criteria_multiply_their_odds() -> None:
    """The best by score alone are rows 3 and 8, by base alone 9 and 10: together a pair must be good in both."""
    assert kept("score,base", 1) == [8]
    assert kept("base,score", 3) == kept("score,base", 3)


def test_the_scale_of_a_measure_says_nothing() -> None:
    """Scores from 0 to 3 and scores a thousandth of that choose the same pairs beside other measures."""
    small = measured().scores / 1000
    assert kept("score,run,base", 5) == kept("score,run,base", 5, scores=small)


def test_doubles_are_left_out_only_where_it_is_asked_for() -> None:
    found = select(measured(), ["duplicates"])
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 6, 8, 9, 10]
    assert [(left.row, left.kind) for left in found.left_out] == [(5, UNUSABLE), (7, TWIN)]
    assert found.left_out[1].why == "almost the same as line 1"
    assert TWIN not in select(measured(), ["length"]).counts


def test_every_row_is_kept_or_left_out_with_a_reason() -> None:
    scores = measured().scores
    scores[2] = np.nan
    found = select(measured(scores=scores), ["score", "duplicates"], 0.3, seed=3)
    assert sorted([*found.rows.tolist(), *(left.row for left in found.left_out)]) == list(range(11))
    assert found.counts == {LOWER: 5, TWIN: 1, UNSCORED: 1, f"{UNUSABLE}: empty `rejected`": 1}
    lower = [left for left in found.left_out if left.kind == LOWER]
    assert all("of 8 by score, 3 are kept" in left.why for left in lower)
    assert {left.values["score"] for left in lower} <= {0.0, 1.0, 2.0}


def test_the_seed_alone_decides_between_equals() -> None:
    same = np.zeros((N, 2))
    first, again, other = (select(measured(scores=same), ["score"], 4, seed).rows.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert select(measured(), ["random"], 4, 1).rows.tolist() == first


def test_a_share_of_few_pairs_keeps_one() -> None:
    assert len(kept("length", 0.01)) == 1
    assert len(kept("length", 1.0)) == N


@pytest.mark.parametrize(
    ("text", "value"), [("0.3", 0.3), ("30%", 0.3), ("300", 300), ("1", 1), ("1.0", 1.0), ("1,000", 1000)]
)
def test_shares_have_a_point_or_a_percent_sign(text: str, value: float | int) -> None:
    found = parse_keep(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["", "a third", "0.3.1", "%", "nan%x"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no share and no number"):
        parse_keep(text)


@pytest.mark.parametrize("keep", [0, -3, 0.0, 1.5, -0.1, float("nan"), float("inf")])
def test_amounts_that_make_no_sense_are_refused(keep: float | int) -> None:
    with pytest.raises(UsageError):
        select(measured(), ["length"], keep)


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(DataError, match="has 10 usable pairs"):
        select(measured(), ["length"], 11)


@pytest.mark.parametrize(
    ("by", "says"),
    [
        (["lenght"], "did you mean `length`"),
        (["base", "hard"], "two ends"),
        (["run", "new"], "two ends"),
        (["random", "length"], "no criterion"),
    ],
)
def test_criteria_that_contradict_each_other_are_refused(by: list[str], says: str) -> None:
    with pytest.raises(UsageError) as error:
        check(by)
    assert says in str(error.value)


def test_scores_that_are_not_there_are_named() -> None:
    with pytest.raises(DataError) as error:
        select(measured(scores=np.full((N, 2), np.nan)), ["score"])
    assert "score_chosen" in str(error.value)


def test_before_and_after_are_those_of_the_rows() -> None:
    found = select(measured(), ["length"], 0.3)
    every = means(found, np.ones(N, bool))
    after = as_dict(found, "pairs.jsonl", "part.jsonl", 0)["after"]
    assert every["pairs"] == 10
    assert every["rejected_characters"] == pytest.approx(72.5)
    assert after == pytest.approx(
        {
            "pairs": 3,
            "chosen_characters": 100,
            "rejected_characters": 90,
            "chosen_longer": 1.0,
            "score_margin": 4 / 3,
            "base_margin": 0.4,
            "run_margin": 1.0,
        }
    )


def test_the_report_names_each_row() -> None:
    report = as_dict(select(measured(), ["hard"], 9), "pairs.jsonl", "part.jsonl", 0)
    assert [(left["row"], left["reason"]) for left in report["rows_left_out"]] == [(5, UNUSABLE), (10, LOWER)]
    assert report["rows_left_out"][1]["hard"] == -0.5
    assert (report["unit"], report["rows"], report["pairs"], report["asked"], report["kept"]) == ("line", 11, 10, 9, 9)


def test_words_of_the_data_are_no_markup() -> None:
    odd = measured(faults={5: "`[/bold]` has the role [red]"})
    console = Console(width=100)
    with console.capture() as capture:
        for table in tables(select(odd, ["length"])):
            console.print(table)
    assert "`[/bold]` has the role [red]" in capture.get()


def test_what_the_numbers_hide_is_said() -> None:
    scores = np.column_stack([np.arange(N) - 2.0, np.zeros(N)])
    assert remarks(select(measured(scores=scores), ["score"], 9)) == [
        "2 pairs have the lower score on the chosen side; 1 of them is kept"
    ]
    assert remarks(select(measured(looked_at=4), ["duplicates"])) == [
        "near-duplicates were looked for among the first 4 pairs, exact ones among all"
    ]
    assert remarks(select(measured(), ["length"])) == []
    few = select(measured(twins=dict.fromkeys((1, 2, 3, 4, 6, 7, 8), 0)), ["duplicates", "length"], 5)
    assert remarks(few) == ["5 pairs were asked for, 3 are left to keep"]
