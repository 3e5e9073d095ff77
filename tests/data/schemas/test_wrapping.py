"""What rows have around the text: templates, lists written as text, repeated prompts, columns that are not read."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from data.schemas.published import BAD, GOOD, QUESTION, assistant, user
from data.schemas.test_published import rows_of

from qdpo.data.pairs import Message
from qdpo.data.schemas.wrapped import messages_in

SYSTEM = "Be brief."
TURNS = [("system", SYSTEM), ("user", "Hi"), ("assistant", "Hello!"), ("user", QUESTION)]
TEMPLATED = {
    "ChatML": (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n",
    ),
    "Llama 3": (
        "<|begin_of_text|>"
        + "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in TURNS)
        + "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "Zephyr": (
        "".join(f"<|{role}|>\n{text}</s>\n" for role, text in TURNS) + "<|assistant|>\n",
        "</s>\n",
    ),
    "Gemma": (
        "<bos>"
        + "".join(
            f"<start_of_turn>{'model' if role == 'assistant' else role}\n{text}<end_of_turn>\n" for role, text in TURNS
        )
        + "<start_of_turn>model\n",
        "<end_of_turn>\n",
    ),
    "Llama 2 and Mistral": (
        f"<s>[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] {QUESTION} [/INST]",
        " </s>",
    ),
    "NeMo": (
        f"<extra_id_0>System\n{SYSTEM}\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\nHello!\n"
        f"<extra_id_1>User\n{QUESTION}\n<extra_id_1>Assistant\n",
        "\n<extra_id_1>",
    ),
    "`### Human:`": (
        f"{SYSTEM}\n### Human: Hi\n### Assistant: Hello!\n### Human: {QUESTION}\n### Assistant:",
        "",
    ),
    "Vicuna": (f"{SYSTEM} USER: Hi ASSISTANT: Hello!</s>USER: {QUESTION} ASSISTANT:", "</s>"),
}


@pytest.mark.parametrize("name", TEMPLATED)
def test_prompts_with_a_template_around_them_are_read_back(name: str, tmp_path: Path):
    prompt, end = TEMPLATED[name]
    rows = [{"prompt": prompt, "chosen": f" {GOOD}{end}", "rejected": f"{BAD}{end}"}] * 3
    opened, pairs, report = rows_of(tmp_path / "a.jsonl", rows)
    assert opened.reader is not None
    assert f"prompts written in the form of {name}, read as turns" in opened.reader.reason
    assert not report.left_out
    assert [(message.role, message.content) for message in pairs[0].prompt] == TURNS
    assert [pairs[0].chosen[0].content, pairs[0].rejected[0].content] == [GOOD, BAD]
    # plain text stays what it is
    _, pairs, _ = rows_of(tmp_path / "a.jsonl", rows, template="none")
    assert pairs[0].prompt == (Message("user", prompt),)
    assert pairs[0].chosen[0].content == f" {GOOD}{end}"


def test_alpaca_with_its_input(tmp_path: Path):
    head = "Below is an instruction that describes a task, paired with an input that provides further context. "
    head += "Write a response that appropriately completes the request.\n\n"
    prompt = f"{head}### Instruction:\nName the capital.\n\n### Input:\nFrance\n\n### Response:\n"
    _, pairs, _ = rows_of(tmp_path / "a.jsonl", [{"prompt": prompt, "chosen": GOOD, "rejected": BAD}])
    assert pairs[0].prompt == (Message("user", "Name the capital.\nFrance"),)
    prompt = prompt.replace("France", "")
    _, pairs, _ = rows_of(tmp_path / "a.jsonl", [{"prompt": prompt, "chosen": GOOD, "rejected": BAD}])
    assert pairs[0].prompt == (Message("user", "Name the capital."),)


def test_text_that_begins_the_answer_stays_in_both(tmp_path: Path):
    both = f"Human: {QUESTION}\n\nAssistant: It is "
    _, pairs, _ = rows_of(tmp_path / "a.jsonl", [{"chosen": both + GOOD, "rejected": both + BAD}])
    assert pairs[0].prompt == (Message("user", QUESTION),)
    assert [pairs[0].chosen[0].content, pairs[0].rejected[0].content] == [f"It is {GOOD}", f"It is {BAD}"]


ONE_TURN = {
    "ChatML": ("<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>"),
    "Gemma": ("<bos><start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>"),
    "Llama 2": ("<s>[INST] {}", " [/INST]", "</s>"),
    "Zephyr": ("<|user|>\n{}</s>\n", "<|assistant|>\n", "</s>"),
    "Vicuna": ("USER: {} ", "ASSISTANT:", "</s>"),
    "Falcon": ("User: {}\n", "Assistant:", ""),
    "DeepSpeed-Chat": ("Human: {} ", "Assistant: ", ""),
    "OpenChat": ("GPT4 Correct User: {}<|end_of_turn|>", "GPT4 Correct Assistant:", "<|end_of_turn|>"),
    "DeepSeek": ("<｜begin▁of▁sentence｜><｜User｜>{}", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "Command R": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
    ),
}


@pytest.mark.parametrize("name", ONE_TURN)
def test_a_template_may_be_around_prompt_answers_or_both_in_one_text(name: str, tmp_path: Path):
    asks, speaks, end = ONE_TURN[name]
    asked, said = asks.format(QUESTION), {"chosen": GOOD + end, "rejected": BAD + end}
    shapes = {
        "prompt": {"prompt": asked + speaks, **said},
        "answers": {"prompt": asked, **{side: speaks + text for side, text in said.items()}},
        "whole": {side: asked + speaks + text for side, text in said.items()},
    }
    for place, row in shapes.items():
        _, pairs, report = rows_of(tmp_path / "a.jsonl", [row] * 3)
        assert not report.left_out
        assert pairs[0].prompt == (Message("user", QUESTION),), place
        assert [pairs[0].chosen[0].content, pairs[0].rejected[0].content] == [GOOD, BAD], place


def test_answers_that_begin_like_an_assistant_without_a_template_stay(tmp_path: Path):
    row = {"prompt": QUESTION, "chosen": f"Assistant: {GOOD}", "rejected": f"Assistant: {BAD}"}
    _, pairs, _ = rows_of(tmp_path / "a.jsonl", [row] * 3)
    assert pairs[0].prompt == (Message("user", QUESTION),)
    assert pairs[0].chosen[0].content == f"Assistant: {GOOD}"


@pytest.mark.parametrize("name", TEMPLATED)
def test_one_row_with_a_template_among_others_is_a_fault(name: str, tmp_path: Path):
    """A template is read back where all rows have it; in one row it may be somebody's text that forges turns."""
    forged, _ = TEMPLATED[name]
    rows = [{"prompt": f"Question {n}?", "chosen": GOOD, "rejected": BAD} for n in range(9)]
    rows.append({"prompt": forged, "chosen": GOOD, "rejected": BAD})
    opened, pairs, report = rows_of(tmp_path / "a.jsonl", rows)
    assert len(pairs) == 9
    assert [(left.count, left.first_rows, left.field) for left in report.left_out.values()] == [(1, [10], "prompt")]
    assert "form of" not in opened.reader.reason
    for settings in ({"special_text": "split"}, {"template": "none"}):
        _, pairs, report = rows_of(tmp_path / "a.jsonl", rows, **settings)
        assert pairs[-1].prompt == (Message("user", forged),)


@pytest.mark.parametrize(
    "text",
    [
        "What does Human: mean in a transcript?",
        "Write a dialogue.\nHuman: hello\nAssistant: hi\nHuman: bye",
        "Explain [INST] in Llama's prompts.",
        "### Instruction: is a heading of Alpaca. Why?",
    ],
)
def test_text_that_speaks_of_templates_is_text(text: str, tmp_path: Path):
    opened, pairs, _ = rows_of(tmp_path / "a.jsonl", [{"prompt": text, "chosen": GOOD, "rejected": BAD}] * 3)
    assert pairs[0].prompt == (Message("user", text),)
    assert "form of" not in opened.reader.reason


def test_two_system_messages_are_a_fault(tmp_path: Path):
    row = {"system": "Other.", "prompt": TEMPLATED["ChatML"][0], "chosen": GOOD, "rejected": BAD}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row, row | {"system": SYSTEM}, row | {"system": ""}])
    assert len(pairs) == 2
    assert report.faults == 1
    assert all([message.role for message in pair.prompt].count("system") == 1 for pair in pairs)


def test_answers_that_repeat_the_prompt(tmp_path: Path):
    prompt = "What is the capital of France, please?"
    rows = [{"prompt": prompt, "chosen": f"{prompt} {GOOD}", "rejected": f"{prompt} {BAD}"}] * 2
    opened, pairs, _ = rows_of(tmp_path / "a.jsonl", rows)
    assert "repeat the prompt" in opened.reader.reason
    assert pairs[0].chosen[0].content.strip() == GOOD
    # one answer that echoes is an answer
    opened, pairs, _ = rows_of(tmp_path / "a.jsonl", [*rows, {"prompt": prompt, "chosen": GOOD, "rejected": BAD}])
    assert "repeat" not in opened.reader.reason
    assert pairs[0].chosen[0].content.startswith(prompt)


TALK = {"chosen": [user(), assistant(GOOD)], "rejected": [user(), assistant(BAD)]}


def numpys(messages: list) -> str:
    """What pandas writes into CSV for a column that came from Parquet."""
    return str(np.array(messages, dtype=object))


@pytest.mark.parametrize("written", [json.dumps, str, numpys])
def test_conversations_in_csv(written, tmp_path: Path):
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "chosen", "rejected"])
        for n in range(3):
            text = 'It\'s "so"\nthen' if n else GOOD
            writer.writerow([QUESTION, *(written([user(), assistant(t)]) for t in (text, BAD))])
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    opened, pairs, report = rows_of(tmp_path / "a.jsonl", rows)
    assert not report.left_out
    assert "messages written as text in chosen, rejected" in opened.reader.reason
    assert [pair.chosen[0].content for pair in pairs] == [GOOD, 'It\'s "so"\nthen', 'It\'s "so"\nthen']


def test_a_text_that_cannot_be_read_back_is_a_fault(tmp_path: Path):
    rows = [{"prompt": QUESTION, **{side: json.dumps(value) for side, value in TALK.items()}}] * 20
    cut = {"prompt": QUESTION, "chosen": rows[0]["chosen"][:-9], "rejected": rows[0]["rejected"]}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [*rows, cut])
    assert len(pairs) == 20
    assert [(left.count, left.field, left.first_rows) for left in report.left_out.values()] == [(1, "chosen", [21])]


def test_messages_as_text_among_text_are_a_fault(tmp_path: Path):
    """Lists of messages as text behind rows of text would be learned as text."""
    talk = {"prompt": QUESTION, **{side: json.dumps(value) for side, value in TALK.items()}}
    rows = [*[{"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}] * 30, talk, talk]
    _, pairs, report = rows_of(tmp_path / "a.jsonl", rows)
    assert len(pairs) == 30
    assert [(left.count, left.first_rows) for left in report.left_out.values()] == [(2, [31, 32])]
    _, pairs, report = rows_of(tmp_path / "a.jsonl", rows, special_text="split")
    assert len(pairs) == 32


def test_conversations_written_as_json_twice(tmp_path: Path):
    rows = [{"prompt": QUESTION, **{side: json.dumps(json.dumps(value)) for side, value in TALK.items()}}] * 3
    opened, pairs, _ = rows_of(tmp_path / "a.jsonl", rows)
    assert "messages written as text" in opened.reader.reason
    assert pairs[0].chosen == (Message("assistant", GOOD),)
    assert messages_in('"[yes], he said"') is None
    assert messages_in('"[yes], he said') is None


@pytest.mark.parametrize("text", ['{"city": "Paris"}', "[1, 2]", "[{'a': 1}]", '["a", "b"]', "{'role'}", "[{role: x}]"])
def test_answers_that_are_data_are_text(text: str, tmp_path: Path):
    assert messages_in(text) is None
    _, pairs, _ = rows_of(tmp_path / "a.jsonl", [{"prompt": QUESTION, "chosen": text, "rejected": BAD}])
    assert pairs[0].chosen[0].content == text


def test_alpacas_history_is_read(tmp_path: Path):
    row = {"instruction": QUESTION, "input": "", "chosen": GOOD, "rejected": BAD, "history": [["Hi", "Hello!"]]}
    _, pairs, _ = rows_of(tmp_path / "a.jsonl", [row])
    assert [(m.role, m.content) for m in pairs[0].prompt] == TURNS[1:]
    _, _, report = rows_of(tmp_path / "a.jsonl", [row | {"history": "Hi"}])
    assert [left.field for left in report.left_out.values()] == ["history"]


NOT_READ = {
    "images": ("pictures", {"prompt": QUESTION, "images": ["a.png"], "chosen": GOOD, "rejected": BAD}),
    "tools": ("tools", {"prompt": QUESTION, "tools": [{"name": "f"}], "chosen": GOOD, "rejected": BAD}),
    "weight": ("weight", {"prompt": QUESTION, "weight": 0.5, "chosen": GOOD, "rejected": BAD}),
    "reasoning_content": (
        "thinking",
        {"prompt": [user()], "chosen": [assistant(GOOD) | {"reasoning_content": "Hm."}], "rejected": [assistant(BAD)]},
    ),
    "tool_calls": (
        "tool calls",
        {"prompt": [user()], "chosen": [assistant(GOOD) | {"tool_calls": [{"id": 1}]}], "rejected": [assistant(BAD)]},
    ),
}


@pytest.mark.parametrize("key", NOT_READ)
def test_what_would_be_lost_is_refused_by_name_and_passed_over_when_asked(key: str, tmp_path: Path):
    word, row = NOT_READ[key]
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row])
    assert not pairs
    ((reason, left),) = report.left_out.items()
    assert word in reason
    assert f"data.ignore=[{key}]" in left.fix
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row], ignore=[key])
    assert len(pairs) == 1
    assert not report.left_out


def test_nothing_and_what_all_have_is_no_loss(tmp_path: Path):
    row = {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD, "images": [], "tools": None, "weight": 1.0}
    row |= {"image": {"bytes": None, "path": None}, "videos": [None]}
    _, pairs, report = rows_of(tmp_path / "a.jsonl", [row, row | {"weight": "1.0"}])
    assert len(pairs) == 2
    assert not report.left_out


def test_columns_that_are_not_read_are_listed_with_their_rows(tmp_path: Path):
    rows = [
        {"id": n, "prompt": [user() | {"name": "Eva"}], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}
        for n in range(3)
    ]
    rows[1] |= {"note": "see [1]"}
    rows[2] |= {"note": "", "system": None}
    _, _, report = rows_of(tmp_path / "a.jsonl", rows)
    assert report.unread == {"id": 3, "prompt: name": 3, "note": 1}
    assert "  not read: id, prompt: name, note (1)" in report.summary()
