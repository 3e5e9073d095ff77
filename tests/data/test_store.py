"""Token pairs on disk behave as a list of them does; the cache gives back what was put in, and nothing stale."""

import numpy as np
import pytest
from data.toy_tokenizers import byte_level

from qdpo.config.schema import DataSection
from qdpo.data import cache
from qdpo.data import prepare as prepare_module
from qdpo.data.pairs import TokenPair
from qdpo.data.prepare import fingerprint, prepare
from qdpo.data.store import Builder, TokenPairs
from qdpo.errors import DataError

PAIRS = [TokenPair(i, list(range(i + 1)), [7] * (i + 2), [2**31 - 1 - i]) for i in range(10)]


def stored_pairs() -> TokenPairs:
    builder = Builder()
    for pair in PAIRS:
        builder.add(pair)
    return builder.finish()


def test_a_sequence_like_any_other():
    stored = stored_pairs()
    assert len(stored) == 10
    assert list(stored) == PAIRS
    assert stored[3] == PAIRS[3]
    assert stored[-1] == PAIRS[-1]
    assert list(stored[2:5]) == PAIRS[2:5]
    assert list(stored[:2] + stored[8:]) == PAIRS[:2] + PAIRS[8:]
    assert list(stored.select(np.array([4, 4, 0]))) == [PAIRS[4], PAIRS[4], PAIRS[0]]
    assert fingerprint(stored) == fingerprint(PAIRS)
    assert fingerprint(stored[:9]) != fingerprint(PAIRS)
    with pytest.raises(IndexError):
        stored[10]
    with pytest.raises(ValueError, match="one file"):
        stored + stored_pairs()


def test_what_is_known_of_each_pair():
    builder = Builder()
    builder.add(PAIRS[1], source=2, cuts=["chosen", "boundary"], keys=(1, 2**64 - 1, 3, 4), scores=(4.5, 4.0))
    builder.add(PAIRS[2])
    records = builder.finish().records
    assert records["row"].tolist() == [1, 2]
    assert records["cut"].tolist() == [2 | 8, 0]
    assert records["chosen_key"].tolist() == [2**64 - 1, 0]
    assert records["rejected_score"][0] == 4.0
    assert np.isnan(records["rejected_score"][1])


@pytest.fixture
def config(tmp_path) -> DataSection:
    lines = [f'{{"prompt": "question {i}", "chosen": "yes {i}", "rejected": "no {i}"}}\n' for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    return DataSection(name=str(tmp_path / "a.jsonl"), template="zephyr")


def entries(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_the_second_time_comes_from_the_cache(config: DataSection, tmp_path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "cache"
    first = prepare(config, byte_level(), 1, cache=folder)
    monkeypatch.setattr("qdpo.data.prepare._read", lambda *args: pytest.fail("it was read again"))
    second = prepare(config, byte_level(), 1, cache=folder)
    assert list(second.train) == list(first.train)
    assert list(second.heldout) == list(first.heldout)
    assert second.train_report == first.train_report
    assert second.heldout_report == first.heldout_report
    assert list(second.train + second.heldout) == list(first.train + first.heldout)


def test_whatever_decides_on_the_ids_makes_another_entry(config: DataSection, tmp_path):
    folder = tmp_path / "cache"
    seen = 0

    def fresh(config: DataSection, tokenizer=None, seed: int = 1) -> None:
        nonlocal seen
        prepare(config, tokenizer or byte_level(), seed, cache=folder)
        seen += 1
        assert len(entries(folder)) == seen

    fresh(config)
    fresh(config, seed=2)
    fresh(config, byte_level("<|extra|>"))
    for change in (
        {"template": "mistral"},
        {"max_length": 900},
        {"max_prompt_length": 100},
        {"system": "Be brief."},
        {"max_rows": 30},
        {"eval_fraction": 0.2},
    ):
        fresh(config.model_copy(update=change))
    path = tmp_path / "a.jsonl"
    path.write_text(path.read_text().replace("yes 7", "yeah 7"))
    fresh(config)
    template = tmp_path / "mine.jinja"
    for end in ("", "!"):
        template.write_text("{% for m in messages %}{{ m.content }}" + end + "{{ eos_token }}{% endfor %}")
        fresh(config.model_copy(update={"template": str(template)}))


MORE = "".join(f'{{"prompt": "another question {i}", "chosen": "yes", "rejected": "no"}}\n' for i in range(9))


@pytest.mark.parametrize(
    ("part", "stage", "content"),
    [("a.jsonl", "check", MORE), ("held.jsonl", "check", MORE + MORE), ("a.jsonl", "finish", None)],
    ids=["between the passes", "the held-out file", "gone at the end"],
)
def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(
    part: str, stage: str, content: str | None, config: DataSection, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    if part == "held.jsonl":
        (tmp_path / part).write_text(MORE)
        config = config.model_copy(update={"eval_name": str(tmp_path / part)})
    step = getattr(prepare_module, stage)

    def step_then_change(*args):
        result = step(*args)
        (tmp_path / part).unlink() if content is None else (tmp_path / part).write_text(content)
        return result

    monkeypatch.setattr(prepare_module, stage, step_then_change)
    with pytest.raises(DataError, match=f"{part} changed while it was read"):
        prepare(config, byte_level(), 1, cache=tmp_path / "cache")
    assert not entries(tmp_path / "cache")


def test_a_file_that_is_written_again_as_it_was_has_not_changed(config: DataSection, tmp_path, monkeypatch):
    path, read = tmp_path / "a.jsonl", prepare_module.check

    def check_then_write(*args):
        path.write_text(path.read_text())
        return read(*args)

    monkeypatch.setattr(prepare_module, "check", check_then_write)
    prepare(config, byte_level(), 1, cache=tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 1


def test_a_damaged_entry_is_not_used(config: DataSection, tmp_path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "cache"
    first = prepare(config, byte_level(), 1, cache=folder)
    (entry,) = folder.iterdir()
    tokens = entry / "tokens.bin"
    tokens.write_bytes(b"\0" + tokens.read_bytes()[1:])
    second = prepare(config, byte_level(), 1, cache=folder)
    assert list(second.train) == list(first.train)
    assert "is damaged" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_said(config: DataSection, tmp_path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    assert len(prepare(config, byte_level(), 1, cache=tmp_path / "file" / "cache").train) == 38
    assert "is not kept" in capsys.readouterr().err


def test_old_entries_make_room(config: DataSection, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "KEPT", 2)
    for seed in range(4):
        prepare(config, byte_level(), seed, cache=tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 2
