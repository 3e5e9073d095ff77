"""`qdpo pairs`: its steps on the command line, one after the other, and what is refused before anything is done."""

from __future__ import annotations

import http.client
import json
import shlex
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pairing.polls import rows_of, voting, write_answers, write_rows

import qdpo
from qdpo.cli.main import main
from qdpo.loopback import TOKEN

GENERATE = ("generate", "--prompts", "p.txt", "--out", "answers.jsonl")


def test_from_prompts_to_training_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("".join(f"The {noun} was\n" for noun in ("farmer", "cat", "house", "dog", "sun", "sea")))
    model = ("--model", "quickstart", "--set", "model.quantization=none", "--max-new-tokens", "6")
    assert main(["pairs", *GENERATE, *model, "--temperature", "1.5"]) == 0
    said = capsys.readouterr()
    assert said.out == "answers.jsonl\n"
    assert "12 answers of up to 6 tokens: about" in said.err
    assert "qdpo pairs vote answers.jsonl" in said.err
    with voting(Path("answers.jsonl")) as (process, address):
        token = parse_qs(urlsplit(address).query)["token"][0]
        connection = http.client.HTTPConnection("127.0.0.1", int(urlsplit(address).port or 0), timeout=30)

        def ask(method: str, path: str, body: object = None) -> dict:
            connection.request(method, path, None if body is None else json.dumps(body), {TOKEN: token})
            return json.loads(connection.getresponse().read())

        state = ask("GET", "/state")
        while state["comparison"]:
            state = ask("POST", "/vote", {"comparison": state["comparison"]["name"], "vote": "left"})
        ask("POST", "/finish", {})
        _, voted = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "qdpo train --model MODEL --data answers-pairs.jsonl" in voted
    pairs = qdpo.load_pairs("answers-pairs.jsonl")
    assert len(pairs.train) + len(pairs.heldout) == state["pairs"] == len(rows_of(Path("answers-pairs.jsonl")))
    # the votes give the same pairs
    assert main(["pairs", "from-ratings", "answers-pairs.votes.jsonl", "--out", "again.jsonl"]) == 0
    assert [(row["chosen"], row["rejected"]) for row in rows_of(Path("again.jsonl"))] == [
        (row["chosen"], row["rejected"]) for row in rows_of(Path("answers-pairs.jsonl"))
    ]


def test_from_ratings_says_what_is_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"q": "p [/bold]", "completion": text, "stars": stars} for text, stars in (("a", 1), ("b", 2))]
    ratings = write_rows(tmp_path / "my [v2] ratings.jsonl", [*rows, {"q": "[/red]", "completion": "x", "stars": 1}])
    out = tmp_path / "out.jsonl"
    given = ["--out", str(out), "--column", "prompt=q", "--column", "score=stars"]
    assert main(["pairs", "from-ratings", str(ratings), *given]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "my [v2] ratings.jsonl" in said.err
    assert 'one rated answer only ("[/red]")' in said.err
    assert f"qdpo train --model MODEL --data {shlex.quote(str(out))}" in said.err
    assert main(["pairs", "from-ratings", str(ratings), *given]) == 73


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 64, "the following arguments are required: STEP"),
        (["vot"], 64, "invalid choice: 'vot'"),
        (["vote"], 64, "the following arguments are required: FILE"),
        (["vote", "nothing.jsonl"], 66, "there is no file nothing.jsonl"),
        (["vote", "answers.jsonl", "--port", "70000"], 64, "--port 70000 is no port"),
        (["vote", "answers.jsonl", "--out", "answers.jsonl"], 73, "exists and is left as it is"),
        ([*GENERATE], 64, "which model answers?"),
        ([*GENERATE, "--model", "m", "--by", "run"], 64, "--by run needs a run"),
        ([*GENERATE, "--model", "m", "-k", "1"], 64, "-k takes a number from 2"),
        ([*GENERATE, "--model", "m", "--temperature", "0"], 64, "the same answer again and again"),
        ([*GENERATE, "--model", "m", "--top-p", "0"], 64, "--top-p above 0"),
        ([*GENERATE, "--model", "m", "--limit", "0"], 64, "--limit takes a number from 1"),
        ([*GENERATE, "--model", "m", "--set", "train.seed=1"], 64, "writing answers reads no such setting"),
        ([*GENERATE, "--run", "r", "--set", "model.quantization=none"], 64, "a run's model is what was trained"),
        ([*GENERATE, "--run", "r"], 66, "r"),
        ([*GENERATE[:-1], "new.jsonl", "--model", "./nowhere"], 66, "nowhere"),
        ([*GENERATE[:-1], "answers.jsonl/x", "--model", "quickstart"], 73, "cannot write"),
        (["generate", "--prompts", "answers.jsonl", "--out", "p.txt", "--model", "quickstart"], 65, "is not JSON"),
        (["from-ratings", "answers.jsonl", "--out", "o.jsonl"], 65, "vote on them: qdpo pairs vote"),
        (["from-ratings", "answers.jsonl", "--out", "o.jsonl", "--column", "x"], 64, "is not OURS=YOURS"),
        (["from-ratings", "answers.jsonl", "--out", "o.jsonl", "--min-gap", "-1"], 64, "--min-gap takes a number"),
    ],
)
def test_what_is_refused(
    argv: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a prompt\n")
    write_answers(Path("answers.jsonl"))
    before = {path: path.read_bytes() for path in Path().iterdir()}
    assert main(["pairs", *argv]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "hint: " in said
    # nothing was made or changed
    assert {path: path.read_bytes() for path in Path().iterdir()} == before
