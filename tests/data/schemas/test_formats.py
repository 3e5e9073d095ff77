"""Every schema of the table of known datasets: recognised from its columns, and read as its authors mean it."""

import pytest
from data.schemas.published import ONE_ROW, SEVERAL_ROWS

from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Tie
from qdpo.data.schemas import BY_NAME, FORMATS
from qdpo.data.schemas.formats import check_columns, keeps_ties, recognise, rename
from qdpo.data.schemas.reader import RowReader
from qdpo.errors import ConfigError, DataError


def user(text: str) -> dict[str, str]:
    return {"content": text, "role": "user"}


def assistant(text: str) -> dict[str, str]:
    return {"content": text, "role": "assistant"}


def read(row: dict, number: int = 0, **reading):
    reader = RowReader([row], "test", **reading)
    items = [item for _, item in reader.items([(number, row)])]
    if isinstance(items[0], BadRow):
        raise items[0]
    return reader.pair(items[0], number)


def said(messages) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


CONTEXT = [user("Hi"), assistant("Hello!"), user("Capital of France?")]

ROWS = {
    "HuggingFaceH4/ultrafeedback_binarized": (
        "pairs",
        {
            "prompt": "Capital of France?",
            "prompt_id": "ab12",
            "chosen": [user("Capital of France?"), assistant("Paris.")],
            "rejected": [user("Capital of France?"), assistant("Lyon.")],
            "messages": [user("Capital of France?"), assistant("Paris.")],
            "score_chosen": 8.5,
            "score_rejected": 8.5,
        },
        ([("user", "Capital of France?")], "Paris.", "Lyon.", (8.5, 8.5)),
    ),
    "argilla/dpo-mix-7k": (
        "implicit_prompt",
        {
            "dataset": "argilla/distilabel-capybara",
            "chosen": [*CONTEXT, assistant("Paris.")],
            "rejected": [*CONTEXT, assistant("Lyon.")],
            "chosen_rating": 5.0,
            "rejected_rating": 4.0,
        },
        (
            [("user", "Hi"), ("assistant", "Hello!"), ("user", "Capital of France?")],
            "Paris.",
            "Lyon.",
            (5.0, 4.0),
        ),
    ),
    "Intel/orca_dpo_pairs": (
        "orca",
        {"system": "Be brief.", "question": "Capital of France?", "chosen": "Paris.", "rejected": " Lyon."},
        ([("system", "Be brief."), ("user", "Capital of France?")], "Paris.", "Lyon.", None),
    ),
    "Intel/orca_dpo_pairs without system": (
        "orca",
        {"system": "", "question": "Capital of France?", "chosen": "Paris.", "rejected": " Lyon."},
        ([("user", "Capital of France?")], "Paris.", "Lyon.", None),
    ),
    "Anthropic/hh-rlhf": (
        "transcripts",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Capital of France?\n\nAssistant: Paris.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Capital of France?\n\nAssistant: Lyon.",
        },
        ([("user", "Hi"), ("assistant", "Hello!"), ("user", "Capital of France?")], "Paris.", "Lyon.", None),
    ),
    "openbmb/UltraFeedback": (
        "ultrafeedback",
        {
            "source": "evol_instruct",
            "instruction": "Capital of France?",
            "models": ["a", "b"],
            "completions": [
                {"model": "a", "response": "Lyon.", "annotations": {}, "overall_score": 2.0},
                {"model": "b", "response": "Paris.", "annotations": {}, "overall_score": 9.0},
            ],
        },
        ([("user", "Capital of France?")], "Paris.", "Lyon.", (9.0, 2.0)),
    ),
    "argilla/ultrafeedback-binarized-preferences": (
        "ultrafeedback_binarized",
        {
            "source": "flan",
            "instruction": "Capital of France?",
            "chosen_response": "Paris.",
            "rejected_response": "Lyon.",
            "chosen_avg_rating": 4.75,
            "rejected_avg_rating": 2.0,
            "chosen_model": "a",
        },
        ([("user", "Capital of France?")], "Paris.", "Lyon.", (4.75, 2.0)),
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": (
        "pairs",
        {
            "source": "flan",
            "prompt": "Capital of France?",
            "chosen": [user("Capital of France?"), assistant("Paris.")],
            "chosen-rating": 5,
            "chosen-model": "a",
            "rejected": [user("Capital of France?"), assistant("Lyon.")],
            "rejected-rating": 2.25,
            "rejected-model": "b",
        },
        ([("user", "Capital of France?")], "Paris.", "Lyon.", (5.0, 2.25)),
    ),
    "jondurbin/truthy-dpo-v0.1": (
        "pairs",
        {"id": "1", "source": "t", "system": "Be true.", "prompt": "Capital?", "chosen": "Paris.", "rejected": "Lyon."},
        ([("system", "Be true."), ("user", "Capital?")], "Paris.", "Lyon.", None),
    ),
    "Winogrande 1": (
        "winogrande",
        {
            "qID": "x-1",
            "sentence": "The trophy does not fit into the case because the _ is too large.",
            "option1": "trophy",
            "option2": "case",
            "answer": "1",
        },
        (
            [("user", "The trophy does not fit into the case because the")],
            "trophy is too large.",
            "case is too large.",
            None,
        ),
    ),
    "Winogrande 2": (
        "winogrande",
        {"sentence": "_ was glad that Eva came.", "option1": "Ann", "option2": "Bea", "answer": 2},
        ([], "Bea was glad that Eva came.", "Ann was glad that Eva came.", None),
    ),
    "LLaMA-Factory ranking": (
        "llama_factory",
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello!"},
                {"from": "human", "value": "Capital of France?"},
            ],
            "chosen": {"from": "gpt", "value": "Paris."},
            "rejected": {"from": "gpt", "value": "Lyon."},
        },
        (
            [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Capital of France?")],
            "Paris.",
            "Lyon.",
            None,
        ),
    ),
    "LLaMA-Factory v1": (
        "implicit_prompt",
        {
            "chosen_messages": [
                {"role": "user", "content": [{"type": "text", "value": "Capital?"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "Paris."}], "loss_weight": 1.0},
            ],
            "rejected_messages": [
                {"role": "user", "content": [{"type": "text", "value": "Capital?"}]},
                {"role": "assistant", "content": [{"type": "text", "value": "Lyon."}]},
            ],
        },
        ([("user", "Capital?")], "Paris.", "Lyon.", None),
    ),
    "ShareGPT lists": (
        "llama_factory",
        {
            "conversations": [{"from": "human", "value": "Capital?"}],
            "chosen": [{"from": "gpt", "value": "Paris."}],
            "rejected": [{"from": "gpt", "value": "Lyon."}],
        },
        ([("user", "Capital?")], "Paris.", "Lyon.", None),
    ),
    "alpaca ranking": (
        "alpaca",
        {"instruction": "Name the capital.", "input": "France", "chosen": "Paris.", "rejected": "Lyon."},
        ([("user", "Name the capital.\nFrance")], "Paris.", "Lyon.", None),
    ),
    "plain text": (
        "pairs",
        {"prompt": "Capital?", "chosen": "Paris.", "rejected": "Lyon."},
        ([("user", "Capital?")], "Paris.", "Lyon.", None),
    ),
    "plain message lists": (
        "pairs",
        {
            "prompt": [{"role": "system", "content": ""}, user("Capital?")],
            "chosen": [assistant("Paris.")],
            "rejected": [assistant("Lyon.")],
        },
        ([("system", ""), ("user", "Capital?")], "Paris.", "Lyon.", None),
    ),
    "BLiMP": (
        "minimal_pairs",
        {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "field": "syntax"},
        ([], "Cats sleep.", "Cats sleeps.", None),
    ),
    "plain with an empty prompt": (
        "pairs",
        {"prompt": "", "chosen": "Cats sleep.", "rejected": "Cats sleeps."},
        ([], "Cats sleep.", "Cats sleeps.", None),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_known_schemas(name: str):
    format_name, row, (prompt, chosen, rejected, scores) = ROWS[name]
    reader = RowReader([row], name)
    assert reader.format.name == format_name
    assert reader.reason.startswith("columns ")
    pair = reader.pair(row, 7)
    assert pair.row == 7
    assert said(pair.prompt) == prompt
    assert said(pair.chosen) == [("assistant", chosen)]
    assert said(pair.rejected) == [("assistant", rejected)]
    assert pair.scores == scores


def test_every_format_has_a_row_here_or_among_the_published():
    found = {format_name for format_name, *_ in (ROWS | ONE_ROW | SEVERAL_ROWS).values()}
    assert found == set(BY_NAME)
    assert len(BY_NAME) == len(FORMATS)


@pytest.mark.parametrize("value", [None, "", "Be kind."])
def test_system_message_of_the_config(value: str | None):
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    expected = [] if value is None else [Message("system", value)]
    assert list(read(row, system=value).prompt) == [*expected, Message("user", "Hi")]
    own = read(row | {"system": "Mine."}, system=value)
    assert own.prompt[0] == Message("system", "Mine.")
    # a completion that stands alone gets no system message either
    assert read(row | {"prompt": ""}, system=value).prompt == ()


def ultrafeedback(*scores: float) -> dict:
    answers = [{"response": f"answer {i}", "overall_score": score} for i, score in enumerate(scores)]
    return {"instruction": "Q", "completions": answers}


def test_ultrafeedback_draws_the_rejected_answer_by_seed_and_row():
    row = ultrafeedback(1, 9, 2, 3)
    drawn = [read(row, number, seed=1).rejected[0].content for number in range(60)]
    assert {"answer 0", "answer 2", "answer 3"} == set(drawn)
    assert all(read(row, number, seed=1).chosen[0].content == "answer 1" for number in range(60))
    assert drawn == [read(row, number, seed=1).rejected[0].content for number in range(60)]
    assert drawn != [read(row, number, seed=2).rejected[0].content for number in range(60)]


def test_ties_are_left_out_when_asked():
    row = ultrafeedback(4, 4)
    assert read(row, ties="keep").scores == (4, 4)
    with pytest.raises(Tie, match="same score"):
        read(row, ties="drop")
    made, named = BY_NAME["ultrafeedback"], BY_NAME["pairs"]
    assert [keeps_ties("auto", made), keeps_ties("auto", named)] == [False, True]
    assert keeps_ties("keep", made)
    assert not keeps_ties("drop", named)


def test_transcripts_join_a_speaker_who_goes_on():
    row = {
        "chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
        "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: d",
    }
    assert said(read(row).prompt) == [("user", "a\n\nb")]


BAD = {
    "null": ({"prompt": "q", "chosen": None, "rejected": "b"}, "`chosen` is null"),
    "number": ({"prompt": "q", "chosen": 3, "rejected": "b"}, "`chosen` is a number, expected text"),
    "empty": ({"prompt": "q", "chosen": "a", "rejected": ""}, "`rejected` is empty"),
    "white space": ({"prompt": "q", "chosen": "a", "rejected": " \n"}, "`rejected` is only white space"),
    "blank prompt": ({"prompt": " ", "chosen": "a", "rejected": "b"}, "`prompt` is only white space"),
    "null prompt": ({"prompt": None, "chosen": "a", "rejected": "b"}, "`prompt` is null"),
    "identical": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical"),
    "surrogate": ({"prompt": "q\ud800", "chosen": "a", "rejected": "b"}, "`prompt` has a lone surrogate"),
    "empty list": ({"prompt": "q", "chosen": [], "rejected": "b"}, "`chosen` is an empty list"),
    "list of text": ({"prompt": "q", "chosen": ["a"], "rejected": "b"}, "`chosen` holds text, expected messages"),
    "role": ({"prompt": "q", "chosen": [{"role": "wizard", "content": "a"}], "rejected": "b"}, 'role "wizard"'),
    "tool": ({"prompt": "q", "chosen": [{"role": "tool", "content": "a"}], "rejected": "b"}, "tool calls"),
    "no content": ({"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": "b"}, "without content"),
    "image": (
        {"prompt": "q", "chosen": [{"role": "assistant", "content": [{"type": "image", "text": "x"}]}], "rejected": ""},
        "not text",
    ),
    "assistant alone": (
        {"prompt": [assistant("x")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        "the prompt ends with an assistant message",
    ),
    "assistant last": (
        {"prompt": [user("q"), assistant("x")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        "the prompt ends with an assistant message",
    ),
    "user twice": (
        {"prompt": [user("q"), user("r")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        "`prompt` has roles out of order",
    ),
    "system late": (
        {
            "prompt": [user("q"), {"role": "system", "content": "s"}],
            "chosen": [assistant("a")],
            "rejected": [assistant("b")],
        },
        "`prompt` has roles out of order",
    ),
    "only system": (
        {
            "prompt": [{"role": "system", "content": "s"}],
            "chosen": [assistant("a")],
            "rejected": [assistant("b")],
        },
        "only a system message",
    ),
    "user answers": (
        {"prompt": "q", "chosen": [user("a")], "rejected": [assistant("b")]},
        "`chosen` starts with a user message",
    ),
    "other prompts": (
        {"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]},
        "its prompt differs",
    ),
    "no answer": (
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q")]},
        "`rejected` has no answer after the prompt",
    ),
    "same conversations": ({"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("a")]}, "identic"),
    "parts early": (
        {
            "chosen": [user("q"), assistant("a"), user("r"), assistant("c")],
            "rejected": [user("q"), assistant("b"), user("r"), assistant("d")],
        },
        "before their last answer",
    ),
    "prompt is another": (
        {"prompt": "other", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        "`prompt` is not the prompt",
    ),
    "two gaps": ({"sentence": "_ and _", "option1": "a", "option2": "b", "answer": "1"}, "2 gaps"),
    "no answer key": ({"sentence": "a _", "option1": "a", "option2": "b", "answer": ""}, "expected 1 or 2"),
    "same options": ({"sentence": "a _", "option1": "b", "option2": "b", "answer": "1"}, "identical"),
    "one completion": (ultrafeedback(3), "fewer than two scored"),
    "no completions": ({"instruction": "q", "completions": None}, "`completions` is null"),
    "empty turn": ({"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"}, "empty turn"),
    "no transcript": ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "nothing"}, "not a transcript"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_say_why(name: str):
    row, reason = BAD[name]
    with pytest.raises(BadRow) as caught:
        read(row)
    assert reason in f"{caught.value} ({caught.value.example})"
    assert caught.value.fix


def test_the_format_is_that_of_most_rows():
    odd = {"question": "q", "chosen": "a", "rejected": "b"}
    usual = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert recognise([odd, usual, usual], "auto", "x")[0].name == "pairs"
    assert recognise([odd, odd, usual], "auto", "x")[0].name == "orca"
    assert recognise([usual], "orca", "x") == (BY_NAME["orca"], "set by data.format")


def test_unknown_columns_are_listed_with_a_guess():
    with pytest.raises(DataError) as caught:
        recognise([{"query": "q", "good": "a", "bad": "b", "n": 1}], "auto", "mine.jsonl")
    assert "mine.jsonl: no known preference format has the columns query, good, bad, n" in caught.value.message
    assert "{prompt: query, chosen: good, rejected: bad}" in str(caught.value.hint)


def test_names_that_need_quotes_are_offered_in_quotes():
    with pytest.raises(DataError) as caught:
        recognise([{"Prompt ": "q", "a: chosen": "a", "Rejected": "b"}], "auto", "mine.jsonl")
    assert 'data.columns={prompt: "Prompt ", chosen: "a: chosen", rejected: Rejected}' in str(caught.value.hint)


def test_columns_are_renamed_and_misspelt_ones_refused():
    row = {"question": "q", "good": "a", "bad": "b", "prompt": "old"}
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    check_columns(columns)
    assert rename(row, columns) == {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert rename(row, {}) is row
    with pytest.raises(ConfigError) as caught:
        check_columns({"promt": "question"})
    assert "did you mean `prompt`" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="two names"):
        check_columns({"prompt": "q", "chosen": "q"})
