"""What is wrong with the rows of a file: all kinds at once, with true counts, before anything is tokenised."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from data.test_bars import write_rows
from data.toy_tokenizers import byte_level

from qdpo.config.schema import DataSection
from qdpo.data.faults import KINDS, FaultyRows
from qdpo.data.prepare import prepare
from qdpo.data.report import MOST_REASONS, DataReport
from qdpo.data.tokenise import Tokeniser
from qdpo.errors import DataError

SPELLED = "`chosen` contains the text of the end-of-turn token"


def good(count: int = 60) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(count)]


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def settings(path: Path, rows: list[Any], **more: Any) -> DataSection:
    return DataSection(name=written(path, rows), **{"template": "zephyr", **more})


def refused(config: DataSection) -> FaultyRows:
    with pytest.raises(FaultyRows) as caught:
        prepare(config, byte_level(), 1)
    return caught.value


def counts(report: DataReport) -> dict[str, int]:
    return {reason: left.count for reason, left in report.left_out.items()}


def faulty() -> list[Any]:
    """Sixty rows with a fault of each kind that the two passes find."""
    rows: list[Any] = good()
    rows[3]["chosen"] = rows[4]["chosen"] = None
    rows[10]["rejected"] = 5
    rows[20]["rejected"] = ""
    rows[21]["chosen"] += " </s>"
    rows[22]["prompt"] = "<s> again"
    rows[30]["rejected"] = rows[30]["chosen"]
    rows[40]["prompt"] = [{"role": "wizard", "content": "x"}]
    rows[50] = "{broken"
    rows[51] = [1, 2]
    return rows


def test_three_nulls_do_not_hide_the_other_faults(tmp_path: Path):
    rows = good(1000)
    for place, row in enumerate(rows):
        row["chosen"] = None if place < 3 else row["chosen"] + "</s>"
    error = refused(settings(tmp_path / "a.jsonl", rows))
    assert counts(error.reports[0]) == {"`chosen` is null": 3, SPELLED: 997}
    assert error.message.startswith("1,000 of 1,000 rows of ")


def test_the_first_pass_finds_what_the_second_leaves_out(tmp_path: Path):
    found = refused(settings(tmp_path / "a.jsonl", faulty())).reports[0]
    dropped = prepare(settings(tmp_path / "a.jsonl", faulty(), on_bad_row="drop"), byte_level(), 1).train_report
    assert len(found.left_out) == 9
    assert found.left_out == dropped.left_out


def test_nothing_is_tokenised_but_rows_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    batch = Tokeniser.batch
    monkeypatch.setattr(Tokeniser, "batch", lambda self, pairs: seen.extend(pairs) or batch(self, pairs))
    refused(settings(tmp_path / "a.jsonl", faulty()))
    # the first ones, of which it is not known yet whether the template takes them, and those with special tokens
    assert len(seen) <= 60
    seen.clear()
    rows = good(600)
    rows[599]["chosen"] = None
    refused(settings(tmp_path / "a.jsonl", rows))
    assert len(seen) <= 256


def test_conversations_that_the_template_refuses_are_all_counted(tmp_path: Path):
    template = tmp_path / "one-turn.jinja"
    template.write_text(
        "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}"
        "{{ raise_exception('one turn only') }}{% endif %}"
        "<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    said = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    rows = [row | ({"prompt": said} if i % 2 else {}) for i, row in enumerate(good(600))]
    error = refused(settings(tmp_path / "a.jsonl", rows, template=str(template)))
    ((reason, left),) = error.reports[0].left_out.items()
    assert reason.endswith("refuses the conversation: one turn only")
    assert (left.count, left.first_rows) == (300, [2, 4, 6, 8, 10])


def test_training_and_held_out_rows_are_told_of_together(tmp_path: Path):
    held = good(5)
    held[1]["chosen"] = None
    other = [row | {"score_chosen": 1, "score_rejected": 1} for row in good(3)]
    train = good()
    train[2]["rejected"] = ""
    config = settings(tmp_path / "a.jsonl", train, eval_name=written(tmp_path / "held.jsonl", held))
    error = refused(config)
    assert [(report.source, counts(report)) for report in error.reports] == [
        (str(tmp_path / "a.jsonl"), {"`rejected` is empty": 1}),
        (str(tmp_path / "held.jsonl"), {"`chosen` is null": 1}),
    ]
    assert "1 of 60 rows of" in error.message
    assert "1 of 5 rows of" in error.message
    config = settings(
        tmp_path / "a.jsonl", train, ties="drop", eval_name=written(tmp_path / "ties.jsonl", other + held[:1])
    )
    assert [report.source for report in refused(config).reports] == [str(tmp_path / "a.jsonl")]


def test_duplicates_and_odd_characters_are_told_of_beside_the_faults(tmp_path: Path):
    rows = faulty()
    rows[6] = rows[5]
    rows[7]["chosen"] += "\x00"
    said = str(refused(settings(tmp_path / "a.jsonl", rows)))
    assert "also 1 pair is an exact duplicate of an earlier one (line 7)" in said
    assert "also 1 pair: NUL (line 8)" in said


def test_the_way_out_depends_on_whether_a_row_is_left(tmp_path: Path):
    rows = faulty()
    assert "data.on_bad_row=drop" in str(refused(settings(tmp_path / "a.jsonl", rows)).hint)
    rows = [row | {"chosen": None} for row in good()]
    for on_bad_row in ("error", "drop"):
        hint = str(refused(settings(tmp_path / "a.jsonl", rows, on_bad_row=on_bad_row)).hint)
        assert "no row can be used: check data.columns" in hint


def test_what_cutting_leaves_nothing_of_is_no_fault(tmp_path: Path):
    rows = good()
    rows[5] |= {side: "same " * 60 + side for side in ("chosen", "rejected")}
    config = settings(tmp_path / "a.jsonl", rows, max_length=40, max_prompt_length=20)
    assert prepare(config, byte_level(), 1).train_report.rows_read == 60
    error = refused(settings(tmp_path / "a.jsonl", [*rows, "{broken"], max_length=40, max_prompt_length=20))
    assert counts(error.reports[0]) == {"the line is not JSON": 1}


def test_a_fault_is_named_by_the_users_own_column(tmp_path: Path):
    rows = [{"query": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in good()]
    rows[5]["good"] = 7
    columns = {"prompt": "query", "chosen": "good", "rejected": "bad"}
    (left,) = refused(settings(tmp_path / "a.jsonl", rows, columns=columns)).reports[0].left_out.values()
    assert (left.field, left.example, left.first_rows) == ("good", "7", [6])


HOSTILE = ["[/bold]", "[red]", "\x1b]0;title\x07", "\x1b[2J", "\u202e", "r" * 100_000]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_rows_hold_is_shown_as_text_and_in_bounds(tmp_path: Path, text: str):
    rows = good()
    rows[1]["prompt"] = [{"role": text, "content": "x"}]
    rows[2]["chosen"] = {text: 1}
    rows[3] = {text: 1}
    rows[4]["rejected"] = text + "</s>"
    rows[5] = text
    said = str(refused(settings(tmp_path / f"a [v2] {text[:9]}.jsonl".replace("/", ""), rows)))
    assert len(said) < 4000
    assert not set(said) & {"\x1b", "\x07", "\u202e"}
    if text.startswith("["):
        assert f'the role "{text}"' in said


def test_reasons_that_differ_from_row_to_row_are_bounded(tmp_path: Path):
    template = tmp_path / "talkative.jinja"
    template.write_text(
        "{% if messages[0]['content'].startswith('no') %}{{ raise_exception(messages[0]['content']) }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    rows = [row | {"prompt": f"no {i} </s>"} if i else row for i, row in enumerate(good(300))]
    error = refused(settings(tmp_path / "a.jsonl", rows, template=str(template), special_text="split"))
    assert any(reason.endswith("no 1 </s>") for reason in error.reports[0].left_out)
    assert sum(counts(error.reports[0]).values()) == 299
    assert len(error.reports[0].left_out) == MOST_REASONS + 1
    assert f"and {MOST_REASONS + 1 - KINDS} more reasons" in str(error)
    assert len(str(error)) < 10_000


def test_an_access_token_in_a_row_is_not_shown(tmp_path: Path):
    secret = "hf_" + "abcdefgh" * 5
    rows = good()
    rows[1]["chosen"] = [secret]
    rows[2]["prompt"] = [{"role": secret, "content": "x"}]
    rows[3] = '{"prompt": "' + secret
    said = str(refused(settings(tmp_path / "a.jsonl", rows)))
    assert "abcdefgh" not in said
    assert said.count("***") == 3


def test_faults_of_a_long_file_are_known_at_once(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    write_rows(path, 10_000, 160)
    with path.open("a") as stream:
        stream.write("{broken\n")
    started = time.process_time()
    error = refused(DataSection(name=str(path), template="zephyr"))
    # 60,000 rows in less than 12 s
    assert time.process_time() - started <= 2
    assert error.reports[0].left_out["the line is not JSON"].first_rows == [10_001]


def test_one_of_a_kind_is_spoken_of_as_one(tmp_path: Path):
    rows = [*good(30), good()[0], {"prompt": "x", "chosen": "a", "rejected": "b"}]
    rows += [{"prompt": "x", "chosen": "c", "rejected": "a"}, {"prompt": "y", "chosen": "a", "rejected": "b\0"}]
    said = prepare(settings(tmp_path / "a.jsonl", rows), byte_level(), 0).train_report.remarks()
    assert "1 pair is an exact duplicate of an earlier one (line 31)" in said
    assert "1 pair prefers an answer that another pair rejects for the same prompt (line 32)" in said
    assert "1 pair: NUL (line 34)" in said
    with pytest.raises(DataError, match="1 pair has 1 different prompt: too few to hold some out"):
        prepare(settings(tmp_path / "b.jsonl", good(1)), byte_level(), 1)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "assistant", "content": ""}, "`prompt` has an assistant message that is empty"),
        ({"role": "assistant", "content": " "}, "`prompt` has an assistant message that is only white space"),
        ({"role": "assistant"}, "`prompt` has an assistant message without content"),
        ({"role": "assistant", "content": 3}, "`prompt` has an assistant message whose content is a number"),
    ],
)
def test_a_message_at_fault_is_not_the_whole_prompt(message: dict[str, Any], says: str, tmp_path: Path):
    turns = [{"role": "user", "content": "why?"}, message, {"role": "user", "content": "and now?"}]
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    error = refused(settings(tmp_path / "a.jsonl", [{"prompt": turns, **answers}]))
    (reason,) = error.reports[0].left_out
    assert reason.startswith(says)
    assert error.message.startswith("1 of 1 row of ")
