"""run.json is read into sections whatever version wrote it, and written with what was set and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from qdpo.errors import InputMissingError
from qdpo.run.folder import RECORD, read_record, write_record
from qdpo.run.schema import Base, Engine, Record, Result

OLD = {
    "schema": 1,
    "name": "tiny",
    "base": {"name": "some/base", "of_another_version": [1, 2]},
    "data": {"train": {"pairs": 7}},
    "result": None,
    "a section of another version": {"a": {"b": 1}},
}


def test_what_is_missing_reads_as_none_and_a_section_without_values_is_false() -> None:
    record = Record.model_validate(OLD)
    assert (record.version, record.base.name, record.data.train.pairs) == (1, "some/base", 7)
    assert record.base.parameters is record.data.heldout.pairs is record.result.steps is record.checks is None
    assert record.base
    assert not record.result
    assert not record.engine


def test_what_is_written_is_what_was_read_and_set(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps(OLD))
    record = read_record(tmp_path)
    write_record(tmp_path, record)
    assert json.loads((tmp_path / RECORD).read_text()) == OLD
    record.result, record.engine, record.saved_step = Result(steps=3, text_nll=None), Engine(way="packed"), 2
    record.engine = record.engine.model_copy(update={"kept_layers": 1})
    write_record(tmp_path, record)
    assert json.loads((tmp_path / RECORD).read_text()) == OLD | {
        "result": {"steps": 3, "text_nll": None},
        "engine": {"way": "packed", "kept_layers": 1},
        "saved_step": 2,
    }


def test_numbers_stay_as_they_are_written() -> None:
    metrics = {"step": 4, "epoch": 0.5, "eval_loss": 1}
    kept = Record.model_validate({"result": {"before": metrics}}).as_dict()["result"]["before"]
    assert json.dumps(kept) == json.dumps(metrics)


def test_a_section_is_replaced_and_never_changed_in_place() -> None:
    """What is set inside a section that the record does not have yet would not be written."""
    with pytest.raises(ValidationError):
        Record().engine.way = "packed"  # type: ignore[misc]
    record = Record()
    record.engine = Engine(way="packed")
    assert record.as_dict() == {"engine": {"way": "packed"}}
    assert Record().engine.way is None


@pytest.mark.parametrize(
    ("content", "place"), [({"base": "x"}, "base"), ({"result": {"steps": "many"}}, "result.steps")]
)
def test_a_value_of_another_kind_is_an_error_that_names_its_place(
    content: dict[str, object], place: str, tmp_path: Path
) -> None:
    (tmp_path / RECORD).write_text(json.dumps(content))
    with pytest.raises(InputMissingError, match=place):
        read_record(tmp_path)
    with pytest.raises(ValidationError):
        Record(**content)


def test_a_misspelt_value_is_kept_apart_from_the_known_one() -> None:
    base = Base.model_validate({"nmae": "x"})
    assert base.name is None
    assert base.model_dump(exclude_unset=True) == {"nmae": "x"}
