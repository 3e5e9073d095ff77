"""Which comparison comes next, what the votes prefer, and what the file of pairs holds of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pairing.polls import rows_of, write_answers, write_rows

from qdpo.errors import DataError, OutputError
from qdpo.pairing.answers import Answered, read_answers
from qdpo.pairing.poll import Poll, log_of
from qdpo.pairing.votes import Ballot


def answers(path: Path, **wanted: int) -> list[Answered]:
    return read_answers(str(write_answers(path / "answers.jsonl", **wanted)))


def vote(poll: Poll, choice: str, edited: str | None = None) -> None:
    found = next(poll.ballot.open())
    poll.vote(found.name, choice, edited)


def side_of(poll: Poll, text: str) -> str:
    """Where the comparison that is shown has a text."""
    found = next(poll.ballot.open())
    return "left" if found.left.text == text else "right"


def test_the_winner_meets_the_next_answer(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    with Poll.opened(answers(tmp_path, prompts=1, k=4), out, 1) as poll:
        assert poll.ballot.total == 3
        vote(poll, side_of(poll, "answer 0.1"))
        found = next(poll.ballot.open())
        assert {found.left.text, found.right.text} == {"answer 0.1", "answer 0.2"}
        vote(poll, "tie")
        found = next(poll.ballot.open())
        # after a tie the earlier answer goes on
        assert {found.left.text, found.right.text} == {"answer 0.1", "answer 0.3"}
        vote(poll, side_of(poll, "answer 0.3"))
        assert next(poll.ballot.open(), None) is None
        assert poll.ballot.done == 3
    assert [(row["chosen"], row["rejected"]) for row in rows_of(out)] == [
        ("answer 0.1", "answer 0.0"),
        ("answer 0.3", "answer 0.1"),
    ]


def test_sides_depend_on_seed_and_answers_alone(tmp_path: Path) -> None:
    file = answers(tmp_path, prompts=200)

    def lefts(file: list[Answered], seed: int) -> list[str]:
        return [found.left.text for found in Ballot(file, seed).open()]

    assert lefts(file, 1) == lefts(file, 1)
    assert lefts(file, 1) != lefts(file, 2)
    assert lefts(file[50:], 1) == lefts(file, 1)[50:]
    first = sum(text.endswith(".0") for text in lefts(file, 1))
    assert 70 < first < 130


def test_how_often_run_and_base_are_preferred(tmp_path: Path) -> None:
    with Poll.opened(answers(tmp_path, prompts=5), tmp_path / "pairs.jsonl", 1) as poll:
        for number in range(3):
            vote(poll, side_of(poll, f"answer {number}.{0 if number < 2 else 1}"))
        vote(poll, "tie")
        vote(poll, "edit left", "better")
        assert poll.ballot.wins() == {"run": 2, "base": 1, "tie": 1}
        assert poll.summary() == [
            "5 of 5 comparisons voted on: 4 pairs (1 of them an edit), 1 tie, 0 skipped",
            "preferred: base 1, run 2; ties 1",
        ]


def test_votes_stay_when_the_answers_become_more(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    with Poll.opened(answers(tmp_path, prompts=2), out, 1) as poll:
        vote(poll, "left")
    with Poll.opened(answers(tmp_path, prompts=4), out, 1) as poll:
        assert (poll.ballot.done, poll.ballot.total) == (1, 4)
        vote(poll, "right")
    # and when they are others
    with Poll.opened(
        read_answers(str(write_rows(tmp_path / "b.jsonl", [{"prompt": "q", "answers": ["x", "y"]}]))), out, 1
    ):
        pass
    assert [row["prompt"] for row in rows_of(out)] == ["prompt 0", "prompt 1"]


def test_pairs_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    file, out = answers(tmp_path), tmp_path / "pairs.jsonl"
    out.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(OutputError, match="exists and is left as it is"), Poll.opened(file, out, 1):
        pass
    out.unlink()
    with Poll.opened(file, out, 1) as poll:
        vote(poll, "left")
        vote(poll, "right")
        poll.undo(str(poll.ballot.last))
    before = out.read_text()
    out.write_text(before + '{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    others = pytest.raises(OutputError, match=r"has 1 line not from the votes .*first: line 2")
    with others, Poll.opened(file, out, 1):
        pass
    assert '"a"' in out.read_text()
    out.write_text(before)
    with Poll.opened(file, out, 1) as poll:
        assert poll.pairs == 1


def test_nothing_is_left_by_who_does_not_vote(tmp_path: Path) -> None:
    file, out = answers(tmp_path), tmp_path / "pairs.jsonl"
    with Poll.opened(file, out, 1) as poll:
        assert log_of(out).exists()
        vote(poll, "left")
        poll.undo(str(poll.ballot.last))
    assert not out.exists()
    assert [row["vote"] for row in rows_of(log_of(out))] == ["left", "undo"]
    log_of(out).unlink()
    with Poll.opened(file, out, 1):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"comparison": "x", "vote": "up"}', '{"vote": "left"}'])
def test_a_damaged_file_of_votes(tmp_path: Path, line: str) -> None:
    file, out = answers(tmp_path), tmp_path / "pairs.jsonl"
    with Poll.opened(file, out, 1) as poll:
        vote(poll, "left")
    before = log_of(out).read_text() + f"{line}\n"
    log_of(out).write_text(before)
    with pytest.raises(DataError, match=r"votes\.jsonl:2"), Poll.opened(file, out, 1):
        pass
    assert log_of(out).read_text() == before


def test_what_can_be_voted_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "a", "answers": ["x", "x"]},
        {"question": "b", "responses": [{"content": "x"}, {"role": "assistant", "content": "y"}]},
        {"messages": [{"role": "user", "content": "c"}], "completions": [[{"role": "assistant", "content": "x"}], "y"]},
        {"question": "b", "responses": ["x", "y"]},
    ]
    found = read_answers(str(write_rows(tmp_path / "a.jsonl", rows)))
    assert [[answer.text for answer in entry.answers] for entry in found] == [["x"], ["x", "y"], ["x", "y"]]
    said = capsys.readouterr().err
    assert "1 row is the same as an earlier one" in said
    assert "1 of 3 prompts has one answer only" in said
    # pairs that there are can be looked at again, without their names
    pairs = write_rows(tmp_path / "p.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert [[(a.text, a.by) for a in entry.answers] for entry in read_answers(str(pairs))] == [
        [("a", "chosen"), ("b", "rejected")]
    ]
    with pytest.raises(DataError, match="no prompt with two answers"):
        read_answers(str(write_rows(tmp_path / "c.jsonl", rows[:1])))
    bad = write_rows(tmp_path / "d.jsonl", [*rows, {"prompt": "d"}, {"prompt": "e", "answers": [1, "b"]}, "text"])
    with pytest.raises(DataError, match="expected text"):
        read_answers(str(bad))
    assert len(read_answers(str(bad), drop=True)) == 3


def test_the_log_says_what_was_shown(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    with Poll.opened(answers(tmp_path, prompts=1), out, 1) as poll:
        found = next(poll.ballot.open())
        vote(poll, "edit right", "better")
    line = json.loads(log_of(out).read_text())
    assert line == {
        "comparison": found.name,
        "prompt": [{"role": "user", "content": "prompt 0"}],
        "left": {"text": found.left.text, "by": found.left.by},
        "right": {"text": found.right.text, "by": found.right.by},
        "vote": "edit right",
        "edited": "better",
    }
