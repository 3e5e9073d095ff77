"""The shapes in which preferences are published: each is known from its rows alone and read as its authors mean it."""

import json
from pathlib import Path

import pytest
from data.schemas.published import (
    BAD,
    GOOD,
    NO_PAIRS,
    ONE_ROW,
    QUESTION,
    SEVERAL_ROWS,
    arena,
    assistant,
    oasst,
    steered,
    user,
)

from qdpo.config.schema import DataSection
from qdpo.data.files.sources import find_source
from qdpo.data.pairs import Message
from qdpo.data.report import DataReport
from qdpo.data.rows import Rows
from qdpo.data.schemas import BY_NAME
from qdpo.errors import DataError


def rows_of(path: Path, rows: list[dict], **settings) -> tuple[Rows, list, DataReport]:
    """What becomes of a file with these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection(name=str(path), **settings)
    plain = section.template == "none"
    opened = Rows(section, find_source(str(path)), section.format, None, system=None, seed=1, plain=plain)
    report = DataReport("x")
    return opened, [pair for batch in opened.batches(report) for _, pair in batch], report


@pytest.mark.parametrize("name", [*ONE_ROW, *SEVERAL_ROWS])
def test_published_shapes(name: str, tmp_path: Path):
    format, found = (ONE_ROW | SEVERAL_ROWS)[name]
    rows, pairs, report = rows_of(tmp_path / "a.jsonl", found if isinstance(found, list) else [found])
    assert rows.reader is not None
    assert rows.reader.format.name == format
    assert not report.left_out
    (pair,) = pairs
    asked = "Capital of\nFrance?" if "France?" in str(found) and QUESTION not in str(found) else QUESTION
    assert pair.prompt == (Message("user", asked),)
    said = [" " + GOOD, " " + BAD] if format == "implicit_text" else [GOOD, BAD]
    if format == "step_dpo":
        said = [GOOD, "Parma."]
    assert [pair.chosen, pair.rejected] == [(Message("assistant", text),) for text in said]


@pytest.mark.parametrize("name", NO_PAIRS)
def test_what_is_no_preference_data_is_named(name: str, tmp_path: Path):
    word, row = NO_PAIRS[name]
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / "a.jsonl", [row, row])
    assert word in caught.value.message
    assert "columns={chosen" not in str(caught.value.hint)


def test_every_format_is_in_the_table_of_the_documentation():
    page = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text()
    assert all(f"| `{name}` |" in page for name in BY_NAME)


def test_a_tie_is_left_out_without_being_a_fault(tmp_path: Path):
    ties = ["tie", "tie (bothbad)", "both_bad", "both_good"]
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [arena(said) for said in [*ties, "model_a"]])
    assert [pair.row for pair in pairs] == [5]
    assert [(left.count, left.inherent) for left in report.left_out.values()] == [(4, True)]
    assert not report.faults


def test_a_verdict_that_names_nobody_is_a_fault(tmp_path: Path):
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [arena("model_c"), arena("model_a"), arena("")])
    assert len(pairs) == 1
    assert report.faults == 2
    assert [left.example for left in report.left_out.values()] == ['"model_c"']


def test_conversations_that_differ_early_have_no_pair(tmp_path: Path):
    long = arena("model_b")
    for side in "ab":
        long[f"conversation_{side}"] = [*long[f"conversation_{side}"], user("Why?"), assistant(side)]
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [long, arena("model_b")])
    assert len(pairs) == 1
    assert [left.inherent for left in report.left_out.values()] == [True]
    # MT-Bench: the second answers were judged, and the first ones differ
    _, pairs, report = rows_of(
        tmp_path / "b.jsonl", [long | {"judge": "x", "turn": 2}, long | {"judge": "x", "turn": 1}]
    )
    assert [pair.row for pair in pairs] == [2]


@pytest.mark.parametrize(("label", "better"), [(0, None), (1, "a"), (2, "b")])
def test_of_answers_counted_from_one_zero_is_a_tie(label: int, better: str | None, tmp_path: Path):
    row = {"instruction": "Q?", "response1": "a", "response2": "b", "annotator1": label}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row])
    assert [pair.chosen[0].content for pair in pairs] == ([better] if better else [])
    assert not report.faults


@pytest.mark.parametrize(
    ("verdict", "better"),
    [("A>B", "a"), ("B>>A", "b"), ("A<B", "b"), ("A=B", None), ("[[A]]", "a"), ("[[A>B]]", "a"), ("Model B", "b")],
)
def test_verdicts_that_name_both_answers(verdict: str, better: str | None, tmp_path: Path):
    row = {"question": "Q?", "answer_a": "a", "answer_b": "b", "verdict": verdict}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row])
    assert [pair.chosen[0].content for pair in pairs] == ([better] if better else [])
    assert not report.faults


@pytest.mark.parametrize(("verdict", "better"), [(1.2, "a"), (1.5, None), ("1.7", "b"), (2, "b")])
def test_a_preference_between_one_and_two(verdict: object, better: str | None, tmp_path: Path):
    row = {"instruction": "Q?", "output_1": "a", "output_2": "b", "preference": verdict}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row])
    assert [pair.chosen[0].content for pair in pairs] == ([better] if better else [])
    assert not report.faults


@pytest.mark.parametrize(("first", "labels"), [(1, (0, 1)), (0, (1, 2)), (1, ("0", "1.0"))])
def test_verdicts_that_count_otherwise_than_the_answers_are_refused(first: int, labels: tuple, tmp_path: Path):
    """0 and 1 may be the first and the second, or none and the first: half would be lost and the other half swapped."""
    answers = {f"response_{first}": "a", f"response_{first + 1}": "b"}
    rows = [{"prompt": "Q?", **answers, "label": label} for label in labels]
    with pytest.raises(DataError, match="1 may be either"):
        rows_of(tmp_path / "a.jsonl", rows)
    # one such row among others is at fault
    others = [{"prompt": "Q?", **answers, "label": label} for label in (first, first + 1)]
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [*others, *rows])
    assert [(left.count, left.field) for left in report.left_out.values() if not left.inherent] == [(1, "label")]
    assert [pair.chosen[0].content for pair in pairs[:2]] == ["a", "b"]


@pytest.mark.parametrize(("scores", "better"), [((2, 8), "b"), (("0.5", "-1"), "a"), ((3, 3), None)])
def test_two_answers_with_a_score_each(scores: tuple[object, object], better: str | None, tmp_path: Path):
    row = {"prompt": "Q?", "response_1": "a", "response_2": "b", "score_1": scores[0], "score_2": scores[1]}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row])
    assert [pair.chosen[0].content for pair in pairs] == ([better] if better else [])
    assert not report.faults
    _, _, report = rows_of(tmp_path / "a.jsonl", [row, row | {"score_1": None}])
    assert [left.field for left in report.left_out.values() if not left.inherent] == ["score_1"]


def test_answers_of_a_question_of_fact_are_not_called_uncompared(tmp_path: Path):
    row = {"context": "x y", "question": QUESTION, "answers": {"text": [GOOD], "answer_start": [0]}}
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / "a.jsonl", [row])
    assert "nobody" not in caught.value.message


def test_a_verdict_is_followed_where_the_scores_say_otherwise_and_both_are_kept(tmp_path: Path):
    row = {"prompt": "Q?", "response_a": "a", "response_b": "b", "winner": "b", "score_a": 9, "score_b": 2}
    _, (pair,), report = rows_of(tmp_path / "a.jsonl", [row])
    assert (pair.chosen[0].content, pair.scores) == ("b", (2, 9))
    assert not report.unread
    _, (pair,), _ = rows_of(tmp_path / "a.jsonl", [row | {"score_b": 9}])
    assert pair.chosen[0].content == "b"
    shp = {"history": "Q?", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 9, "score_B": 2}
    _, (pair,), _ = rows_of(tmp_path / "a.jsonl", [shp])
    assert (pair.chosen[0].content, pair.scores) == ("b", (2, 9))


def test_columns_that_are_null_in_all_rows_say_nothing(tmp_path: Path):
    """As in Parquet of several datasets in one; a null where other rows have something is a fault still."""
    null = dict.fromkeys(("prompt", "conversations", "instruction", "history", "messages"))
    shapes = [
        {"question": QUESTION, "chosen": GOOD, "rejected": BAD},
        {"input": QUESTION, "chosen": GOOD, "rejected": BAD},
        {"chosen": [user(), assistant(GOOD)], "rejected": [user(), assistant(BAD)]},
        {"query": QUESTION, "generations": [GOOD, BAD], "ratings": [2, 1]},
        {"question": QUESTION, "response_a": GOOD, "response_b": BAD, "winner": "a", "preference": None},
    ]
    for shape in shapes:
        _, pairs, report = rows_of(tmp_path / "a.jsonl", [null | shape] * 2)
        assert [pair.prompt[0].content for pair in pairs] == [QUESTION] * 2
        assert not report.left_out
    row = {"prompt": QUESTION, "chosen": None, "rejected": BAD}
    for rows in ([row] * 2, [row | {"chosen": GOOD}, row, row]):
        _, _, report = rows_of(tmp_path / "a.jsonl", rows)
        assert [(left.count, left.field) for left in report.left_out.values()] == [(2, "chosen")]


def test_why_a_format_was_recognised_is_bounded_and_visible(tmp_path: Path):
    fields = {"prompt": QUESTION, "response_1": GOOD, "response_2": BAD, "k" * 100_000: "x", "\x1b[31m": "y"}
    fields |= {f"field{n}": "z" for n in range(1000)}
    for row in (
        {"fields": fields, "responses": {"p": [{"value": "response_1"}]}},
        {
            "data": {name.replace("response_", "answer"): said for name, said in fields.items()},
            "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
        },
        {"k" * 100_000: str([user()]), "prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    ):
        opened, pairs, _ = rows_of(tmp_path / "a.jsonl", [row])
        assert len(pairs) == 1
        assert len(opened.reader.reason) < 1000
        assert "\x1b" not in opened.reader.reason


def test_names_of_columns_as_a_spreadsheet_has_them(tmp_path: Path):
    row = {"Prompt": QUESTION, "Response A": GOOD, "Response B": BAD, "Winner": "A"}
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / "a.jsonl", [row])
    assert "prompt, response_a, response_b, winner" in str(caught.value.hint)


def test_what_a_rows_group_was_read_by_is_not_listed_as_unread(tmp_path: Path):
    _, _, report = rows_of(tmp_path / "a.jsonl", [steered(BAD, 1), steered(GOOD, 4)])
    assert not {"response", "helpfulness"} & report.unread.keys()


def test_an_answer_that_only_names_another_column_is_a_fault(tmp_path: Path):
    row = {"prompt": QUESTION, "response_a": BAD, "response_b": GOOD, "chosen": "b", "rejected": "a"}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row])
    assert not pairs
    ((_, left),) = report.left_out.items()
    assert "data.columns={winner: chosen}" in left.fix
    del row["rejected"]
    with pytest.raises(DataError, match="which of them is better") as caught:
        rows_of(tmp_path / "a.jsonl", [row])
    assert "data.columns={winner: chosen}" in str(caught.value.hint)
    _, (pair,), _ = rows_of(tmp_path / "a.jsonl", [row], columns={"winner": "chosen"})
    assert pair.chosen[0].content == GOOD
    # a short answer beside others is an answer
    _, (pair,), _ = rows_of(tmp_path / "a.jsonl", [{"prompt": QUESTION, "chosen": "b", "rejected": "a"}])
    assert pair.chosen[0].content == "b"


SAYS_NOTHING = {
    "a rating": ("argilla", {"quality": [{"value": 1, "user_id": "u"}]}),
    "a comment": ("argilla", {"comment": [{"value": "Nice.", "user_id": "u"}]}),
    "ratings of both": ("argilla", {"rating_1": [{"value": 1}], "rating_2": [{"value": 5}]}),
    "choices": ("label_studio", [{"result": [{"type": "choices", "value": {"choices": ["1"]}}]}]),
}


@pytest.mark.parametrize("name", SAYS_NOTHING)
def test_annotations_that_compare_nothing_are_a_fault_and_no_tie(name: str, tmp_path: Path):
    tool, said = SAYS_NOTHING[name]
    fields = {"prompt": QUESTION, "response_1": BAD, "response_2": GOOD}
    row = {"fields": fields, "responses": said} if tool == "argilla" else {"data": fields, "annotations": said}
    rows, pairs, report = rows_of(tmp_path / "a.jsonl", [row])
    assert rows.reader.format.name == tool
    assert not pairs
    assert report.faults == 1


def test_earlier_turns_stand_before_every_kind_of_question(tmp_path: Path):
    history = {"history": [["Hi", "Hello!"]]}
    shapes = [
        {"query": QUESTION, "response": GOOD, "rejected_response": BAD},
        {"instruction": QUESTION, "generations": [GOOD, BAD], "ratings": [2, 1]},
        {"prompt": QUESTION, "response_a": GOOD, "response_b": BAD, "winner": "a"},
        {"question": QUESTION, "chosen": GOOD, "rejected": BAD},
        {"prompt": [user()], "chosen": GOOD, "rejected": BAD},
        {"conversations": [user()], "chosen": assistant(GOOD), "rejected": assistant(BAD)},
        {"prompt": [user()], "generations": [GOOD, BAD], "ratings": [2, 1]},
        {"prompt": [user()], "response_a": GOOD, "response_b": BAD, "winner": "a"},
    ]
    for shape in shapes:
        _, (pair,), report = rows_of(tmp_path / "a.jsonl", [shape | history])
        assert [message.content for message in pair.prompt] == ["Hi", "Hello!", QUESTION]
        assert "history" not in report.unread
        _, (pair,), _ = rows_of(tmp_path / "a.jsonl", [shape | history | {"system": "Be brief."}])
        assert [message.content for message in pair.prompt] == ["Be brief.", "Hi", "Hello!", QUESTION]


def test_two_conversations_of_ms_swift_have_one_prompt(tmp_path: Path):
    turns = [user(), assistant("x"), user("Why?")]
    other = [user(), assistant("y"), user("Why?")]
    row = {"messages": [*turns, assistant(GOOD)], "rejected_messages": [*other, assistant(BAD)]}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row])
    assert not pairs
    assert [left.field for left in report.left_out.values()] == ["rejected_messages"]


def test_zero_and_one_are_no_verdict_on_a_and_b(tmp_path: Path):
    row = {"prompt": "Q?", "response_a": "a", "response_b": "b", "label": 1}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row])
    assert not pairs
    assert report.faults == 1


def test_rows_of_one_prompt_are_one_pair_and_alone_none(tmp_path: Path):
    alone = steered("Alone.", 3) | {"prompt": "Another?"}
    rows = [steered(BAD, 1), steered("So so.", 2), steered(GOOD, 4), alone]
    _, pairs, report = rows_of(tmp_path / "a.jsonl", rows)
    assert [(pair.row, pair.chosen[0].content) for pair in pairs] == [(1, GOOD)]
    assert pairs[0].scores is not None
    assert [(left.count, left.inherent, left.first_rows) for left in report.left_out.values()] == [(1, True, [4])]


def test_long_prompts_of_helpsteer_are_turns(tmp_path: Path):
    long = "Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nCapital?"
    _, pairs, _ = rows_of(
        tmp_path / "a.jsonl", [steered(text, n) | {"prompt": long} for n, text in ((1, "a"), (2, "b"))]
    )
    assert [message.role for message in pairs[0].prompt] == ["user", "assistant", "user"]
    assert pairs[0].prompt[1].content == "Hello!"


def test_a_tree_has_a_pair_for_every_question_with_ranked_answers(tmp_path: Path):
    rows = [
        oasst("1", None, "prompter", "Q1"),
        oasst("2", "1", "assistant", "a", 0),
        oasst("3", "1", "assistant", "b", 1),
        oasst("4", "2", "prompter", "Q2"),
        oasst("5", "4", "assistant", "c", 1),
        oasst("6", "4", "assistant", "d", 0),
        oasst("7", None, "prompter", "Q3") | {"message_tree_id": "u"},
    ]
    _, pairs, report = rows_of(tmp_path / "a.jsonl", rows)
    assert [(pair.row, pair.prompt[-1].content, pair.chosen[0].content) for pair in pairs] == [
        (1, "Q1", "a"),
        (1, "Q2", "d"),
    ]
    assert [message.content for message in pairs[1].prompt] == ["Q1", "a", "Q2"]
    assert not report.faults


def test_ms_swift_takes_a_system_message_and_earlier_turns(tmp_path: Path):
    talk = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello!"), user(), assistant(GOOD)]
    _, (pair,), _ = rows_of(tmp_path / "a.jsonl", [{"messages": talk, "rejected_response": BAD}])
    assert [message.role for message in pair.prompt] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("turns", ['["a", null]', '["a", ""]', "[null]"])
def test_a_turn_that_is_missing_is_a_fault(turns: str, tmp_path: Path):
    row = ONE_ROW["lmarena-ai/arena-human-preference-55k"][1] | {"response_b": turns}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row])
    assert not pairs
    assert report.faults == 1


def test_answers_that_begin_with_one_word_have_no_prompt(tmp_path: Path):
    with pytest.raises(DataError, match="no known preference format"):
        rows_of(tmp_path / "a.jsonl", [{"chosen": "The cat slept.", "rejected": "The dog ran away."}] * 3)
    _, (pair,), _ = rows_of(tmp_path / "a.jsonl", [{"chosen": "The sky is blue.", "rejected": "The sky is green."}])
    assert pair.prompt[0].content == "The sky is"


def test_an_assistant_may_greet_first(tmp_path: Path):
    """Together's own example begins so; a template that has no place for it says so itself."""
    row = {"input": {"messages": [assistant("Hello!"), user()]}}
    row |= {"preferred_output": [assistant(GOOD)], "non_preferred_output": [assistant(BAD)]}
    _, (pair,), _ = rows_of(tmp_path / "a.jsonl", [row])
    assert [message.role for message in pair.prompt] == ["assistant", "user"]


def test_a_score_is_never_offered_as_an_answer(tmp_path: Path):
    row = {"frage": "Was?", "chosen_text": "a b", "chosen_reward": 3.0, "rejected_text": "c d", "rejected_label": "bad"}
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / "a.jsonl", [row])
    assert "chosen: chosen_text, rejected: rejected_text" in str(caught.value.hint)
    assert "reward" not in str(caught.value.hint)
