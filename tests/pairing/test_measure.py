"""What is known of a file's pairs: lengths, scores, doubles, and the rows that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qdpo.api.config import Config
from qdpo.data.quality import duplicates
from qdpo.errors import DataError, InputMissingError
from qdpo.pairing.measure import Measured, file_of, measure

WORDS = ("apple", "river", "stone", "cloud", "tiger", "bread", "music", "paper", "green", "night")


def row(i: int, **changes: object) -> dict[str, object]:
    words = " ".join(WORDS[(i * 3 + k * (i + 1)) % 10] + str(i * k) for k in range(60))
    return {"prompt": f"{words}?", "chosen": "a" * (i + 1), "rejected": "bb", **changes}


def look(tmp_path: Path, rows: list[object], *overrides: str, twins: bool = False) -> Measured:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows))
    return measure(Config.load("dpo", overrides, model="quickstart", data=str(path)), (), twins=twins)


def test_lengths_and_scores_are_the_rows_own(tmp_path: Path) -> None:
    rows = [row(0, score_chosen=3, score_rejected="1.5"), row(4), row(2, chosen_rating=1, rejected_rating=2)]
    found = look(tmp_path, rows)
    assert found.characters.tolist() == [[1, 2], [5, 2], [3, 2]]
    np.testing.assert_equal(found.scores, [[3.0, 1.5], [np.nan, np.nan], [1.0, 2.0]])
    assert (found.total, found.rows.tolist(), found.faults, found.twins) == (3, [1, 2, 3], {}, {})


def test_rows_that_are_no_pairs_are_told_apart_and_counted(tmp_path: Path) -> None:
    rows = [row(0), "{broken", row(3, rejected=""), [1], row(5, chosen="bb"), row(6, chosen=None), row(7)]
    found = look(tmp_path, rows)
    assert found.rows.tolist() == [1, 7]
    assert list(found.faults) == [2, 3, 4, 5, 6]
    assert found.faults[2] == "the line is not JSON"
    assert found.faults[5] == "chosen and rejected are identical"
    assert found.total == len(rows)


def test_own_columns_are_named_as_elsewhere(tmp_path: Path) -> None:
    rows = [{"question": "a?", "good": "yes", "rejected": "no", "points": 3, "score_rejected": 1}]
    found = look(tmp_path, rows, "data.columns={prompt: question, chosen: good, score_chosen: points}")
    assert found.scores.tolist() == [[3.0, 1.0]]


def test_doubles_point_to_an_earlier_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Almost the same among the first pairs, the same among all."""
    almost = {**row(1), "chosen": row(1)["chosen"], "prompt": f"{row(1)['prompt']} now"}
    rows = [row(0), row(1), almost, *(row(i) for i in range(2, 8)), row(1)]
    assert look(tmp_path, rows, twins=True).twins == {3: 2, 10: 2}
    assert look(tmp_path, rows).twins == {}
    monkeypatch.setattr(duplicates, "LOOKED_AT", 2)
    few = look(tmp_path, rows, twins=True)
    assert (few.twins, few.looked_at) == ({10: 2}, 2)


def test_a_file_is_one_file(tmp_path: Path) -> None:
    assert file_of("quickstart").is_file()
    with pytest.raises(DataError, match="is a folder"):
        file_of(str(tmp_path))
    with pytest.raises(DataError, match="to_json"):
        file_of("user/preferences")
    with pytest.raises(InputMissingError, match="no file"):
        file_of(str(tmp_path / "gone.jsonl"))


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 2 rows of .* cannot be used") as error:
        look(tmp_path, [row(0, rejected=""), row(1, rejected="")])
    assert "data.on_bad_row" not in str(error.value)
