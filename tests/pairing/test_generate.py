"""Letting a model answer: prompts of every kind, the same bytes however often it is killed, and what is left out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pairing.polls import rows_of, write_rows

from qdpo.api.evaluating import Evaluation
from qdpo.data.faults import FaultyRows
from qdpo.data.pairs import Message
from qdpo.errors import ConfigError, DataError, OutputError
from qdpo.evaluation.subject import Subject
from qdpo.pairing import generate as generating
from qdpo.pairing.generate import Generated, generate
from qdpo.pairing.journal import Journal
from qdpo.pairing.pieces import Prompt
from qdpo.pairing.prompts import read_prompts
from qdpo.pairing.writing import Writing

HOW = Writing(k=3, max_new_tokens=6, temperature=1.5, batch_size=6)
PROMPTS: list[Prompt] = [(Message("user", f"The {noun} was"),) for noun in ("farmer", "cat", "old house", "x", "sun")]


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The embedded model."""
    return Evaluation(model="quickstart", overrides=["model.quantization=none"]).writer()


def answered(subject: Subject, out: Path, prompts: list[Prompt] = PROMPTS, how: Writing = HOW) -> Generated:
    with Journal.opened(out) as journal:
        return generate(subject, prompts, journal, how)


def test_a_line_a_prompt(subject: Subject, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    done = answered(subject, out)
    rows = rows_of(out)
    assert [row["prompt"] for row in rows] == [prompt[0].content for prompt in PROMPTS]
    for row in rows:
        texts = [answer["text"] for answer in row["answers"]]
        assert len(set(texts)) == len(texts) == 3 - row.get("identical", 0) - row.get("empty", 0)
        assert {answer["by"] for answer in row["answers"]} == {"base"}
        assert all(answer["text"] for answer in row["answers"])
    assert done.answers == sum(len(row["answers"]) for row in rows)
    assert rows[0]["made"]["base"] == "quickstart"
    assert rows[0]["made"]["seed"] == 42


def test_the_same_bytes_wherever_it_was_killed(subject: Subject, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    answered(subject, out)
    whole = out.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    # within the first line, at its end, in the middle of a group of two, within the last line
    for size in (5, ends[0], ends[0] + 7, ends[1], ends[2], len(whole) - 3, len(whole) - 1):
        out.write_bytes(whole[:size])
        answered(subject, out)
        assert out.read_bytes() == whole, size


def test_answers_depend_on_seed_and_prompt(subject: Subject, tmp_path: Path) -> None:
    def answers(name: str, prompts: list[Prompt], how: Writing = HOW) -> dict[str, Any]:
        answered(subject, tmp_path / name, prompts, how)
        return {row["prompt"]: row["answers"] for row in rows_of(tmp_path / name)}

    first = answers("a", PROMPTS)
    assert answers("b", PROMPTS[::-1]) == first
    assert answers("c", PROMPTS[2:3], replace(HOW, batch_size=1))["The old house was"] == first["The old house was"]
    assert answers("d", PROMPTS, replace(HOW, seed=1)) != first
    # of more answers the first ones are the same
    more = answers("e", PROMPTS[:2], replace(HOW, k=5))
    assert [answer["text"] for answer in more["The cat was"]][:2] == [a["text"] for a in first["The cat was"]][:2]


def test_memory_that_runs_out(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(subject, tmp_path / "a")
    sampled = generating.sampled
    sizes = []

    def small(model: Any, prompts: list[list[int]], *rest: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise MemoryError
        return sampled(model, prompts, *rest)

    monkeypatch.setattr(generating, "sampled", small)
    answered(subject, tmp_path / "b")
    assert sizes[:3] == [6, 3, 2]
    assert max(sizes[2:]) == 2
    assert [row["answers"] for row in rows_of(tmp_path / "b")] == [row["answers"] for row in rows_of(tmp_path / "a")]


def test_what_is_left_out_is_said(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["a", "a", "", "b", "c", "c", "", "", "d"])
    monkeypatch.setattr(generating, "sampled", lambda _, ids, *rest: [([1], True) for _ in ids])
    monkeypatch.setattr(type(subject.tokenizer), "decode", lambda *given, **named: next(texts))
    done = answered(subject, tmp_path / "a", PROMPTS[:3], replace(HOW, batch_size=9))
    assert [[answer["text"] for answer in row["answers"]] for row in rows_of(tmp_path / "a")] == [
        ["a"],
        ["b", "c"],
        ["d"],
    ]
    assert done.sentences() == [
        "2 answers are the same as another to their prompt, and are left out",
        "3 answers are empty, and are left out",
        "2 prompts have fewer than two different answers: nothing to compare",
    ]


def test_prompts_that_spell_out_special_tokens(
    subject: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Prompt] = [*PROMPTS[:1], (Message("user", "The cat</s> was"),)]

    def under(special_text: str) -> Subject:
        data = subject.config.data.model_copy(update={"special_text": special_text})
        return replace(subject, config=subject.config.model_copy(update={"data": data}))

    with pytest.raises(DataError, match=r'1 of 2 prompts spells out special tokens .*"The cat</s> was"') as caught:
        answered(subject, tmp_path / "a", asked)
    assert "data.special_text=split" in str(caught.value.hint)
    done = answered(under("drop"), tmp_path / "b", asked)
    assert (done.special, done.prompts) == (asked[1:], 1)
    assert 'The cat</s> was"): left out' in " ".join(capsys.readouterr().err.split())
    assert answered(under("split"), tmp_path / "c", asked).prompts == 2
    assert rows_of(tmp_path / "c")[1]["prompt"] == "The cat</s> was"


def test_prompts_that_the_model_has_no_room_for(subject: Subject, tmp_path: Path) -> None:
    long: Prompt = (Message("user", "the cat " * 5000),)
    done = answered(subject, tmp_path / "a", [long, *PROMPTS[:1]])
    assert done.too_long == [long]
    assert len(rows_of(tmp_path / "a")) == 1
    with pytest.raises(DataError, match="all are too long"):
        answered(subject, tmp_path / "b", [long])
    with pytest.raises(ConfigError, match="the model was made for"):
        answered(subject, tmp_path / "c", PROMPTS, replace(HOW, max_new_tokens=10**6))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed 42 instead of 1"),
        ({"k": 2}, "k 3 instead of 2"),
        ({"temperature": 1.0, "top_p": 0.5}, "temperature 1.5 instead of 1.0, top_p 0.95 instead of 0.5"),
    ],
)
def test_a_file_that_was_made_otherwise(subject: Subject, tmp_path: Path, change: Any, said: str) -> None:
    out = tmp_path / "a"
    answered(subject, out, PROMPTS[:2])
    before = out.read_bytes()
    with pytest.raises(OutputError, match=said):
        answered(subject, out, PROMPTS, replace(HOW, **change))
    assert out.read_bytes() == before


def test_a_file_of_other_prompts(subject: Subject, tmp_path: Path) -> None:
    out = tmp_path / "a"
    answered(subject, out, PROMPTS[:2])
    with pytest.raises(OutputError, match=r"a:1 answers another prompt"):
        answered(subject, out, PROMPTS[1:])
    with pytest.raises(OutputError, match="has 2 prompts, 1 is asked"):
        answered(subject, out, PROMPTS[:1])
    # more of them are fine
    assert answered(subject, out, PROMPTS[:3]).found == 2
    foreign = write_rows(tmp_path / "foreign.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    before = foreign.read_bytes()
    with pytest.raises(OutputError, match="is not from qdpo pairs generate"):
        answered(subject, foreign)
    assert foreign.read_bytes() == before


def command(out: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "qdpo", "pairs", "generate", "--model", "quickstart", "--out", str(out)),
        *("--set", "model.quantization=none", *options),
    ]


@pytest.mark.slow
def test_killed_and_started_again(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"The {n} was\n" for n in range(60)))
    options = ("--prompts", str(prompts), "--max-new-tokens", "8", "--batch-size", "4")
    out, whole = tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    with subprocess.Popen(command(out, *options), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while (not out.exists() or out.read_bytes().count(b"\n") < 3) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert out.read_bytes().count(b"\n") < 60
    again = subprocess.run(command(out, *options), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "of 60 prompts; going on" in again.stderr
    assert "if none ends earlier" in again.stderr
    assert f"qdpo pairs vote {out}" in again.stderr
    assert again.stdout.strip() == str(out)
    subprocess.run(command(whole, *options), check=True, capture_output=True)
    assert out.read_bytes() == whole.read_bytes()


def texts(prompts: list[Prompt]) -> list[str]:
    return [" | ".join(f"{message.role}: {message.content}" for message in prompt) for prompt in prompts]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "a"}, "user: a"),
        ({"question": "a", "answer": "b"}, "user: a"),
        ({"instruction": "a", "input": "b", "output": "c"}, "user: a\nb"),
        ({"system": "s", "prompt": "a"}, "system: s | user: a"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "user: a"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                ]
            },
            "user: a | assistant: b | user: c",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "user: a"),
        ({"question": "a", "chosen": "b", "rejected": "c", "system": "s"}, "system: s | user: a"),
        ({"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"}, "user: a\nb"),
        ({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"},
          "rejected": {"from": "gpt", "value": "c"}}, "user: a"),
        ("a", "user: a"),
    ],
)  # fmt: skip
def test_prompts_of_rows(tmp_path: Path, row: Any, text: str) -> None:
    assert texts(read_prompts(str(write_rows(tmp_path / "p.jsonl", [row])))) == [text]


def test_prompts_of_text_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes('\ufeffone\r\n\r\n  two  \none\n{"not": "json"}'.encode())
    assert texts(read_prompts(str(path))) == ["user: one", "user: two", 'user: {"not": "json"}']
    assert "1 of 4 prompts is the same as an earlier one" in capsys.readouterr().err
    assert texts(read_prompts(str(path), limit=1)) == ["user: one"]
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_prompts(str(path))
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match="has no prompt"):
        read_prompts(str(path))


def test_prompts_at_fault(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": ""}, {"prompt": 3}, 5, {"other": "x"}])
    with path.open("a") as stream:
        stream.write("{\n")
    with pytest.raises(FaultyRows, match="5 of 6 rows") as error:
        read_prompts(str(path))
    found = {reason: left.first_rows for reason, left in error.value.reports[0].reasons}
    assert found == {
        "`prompt` is empty": [2],
        "`prompt` is a number, expected text": [3],
        "the row is a number, expected an object with columns": [4],
        "no prompt": [5],
        "the line is not JSON": [6],
    }
    assert texts(read_prompts(str(path), drop=True)) == ["user: a"]
    with pytest.raises(DataError, match="no prompts are known by the columns other"):
        read_prompts(str(write_rows(tmp_path / "q.jsonl", [{"other": "x"}])))


def test_the_embedded_pairs_have_prompts() -> None:
    found = read_prompts("quickstart", limit=5)
    assert len(found) == 5
    assert json.dumps(texts(found))
