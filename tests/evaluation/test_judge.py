"""A judge behind a server is asked in both orders, and only what survives the change of places counts."""

from __future__ import annotations

from typing import Any

import pytest
from evaluation.judging import prefer_good, serving

from qdpo.errors import UnavailableError, UsageError
from qdpo.evaluation.judge import Judge, find_judge, judge_answers, outcome, sentences, shown


def rows(*answers: tuple[str, str]) -> list[dict[str, Any]]:
    """Lines of samples.jsonl with answers of base and policy."""
    return [
        {"step": 40, "prompt": f"prompt {i}", "base": base, "policy": policy}
        for i, (base, policy) in enumerate(answers)
    ]


GOOD = [("bad", "good")] * 12


def test_a_fair_judge_is_believed() -> None:
    seen: list[dict[str, Any]] = []
    with serving(prefer_good, seen=seen) as url:
        found = judge_answers(
            find_judge(url, None), rows(*GOOD, ("good", "bad"), ("x", "y"), ("same  here", "same here"))
        )
    counts = {"wins": 12, "losses": 1, "ties": 1, "places": 0, "identical": 1, "unreadable": 0}
    assert {name: found[name] for name in counts} == counts
    assert found["prompts"] == 15
    assert found["win_share"]["value"] == pytest.approx(12 / 13)
    assert found["win_share"]["low"] > 0.5
    assert found["p_value"] < 0.01
    assert found["first_share"]["value"] == 0.5
    assert len(seen) == 28
    assert {request["model"] for request in seen} == {"a-model"}
    assert {request["temperature"] for request in seen} == {0}
    said = " ".join(sentences(found))
    assert "wins 92% [67%, 99%] of 13 decided" in said
    assert "50 % is chance" in said


def test_a_judge_that_only_likes_a_place_decides_nothing() -> None:
    with serving(lambda prompt, first, second: "A") as url:
        found = judge_answers(find_judge(url, None), rows(*GOOD))
    assert (found["wins"], found["losses"], found["places"]) == (0, 0, 12)
    assert found["win_share"] is None
    assert found["first_share"]["value"] == 1
    assert "nothing can be told" in " ".join(sentences(found))


def test_a_judge_that_likes_length_shows_it() -> None:
    answers = [("one", "one two three four five")] * 6 + [("one two three four five", "one")] * 4
    with serving(lambda prompt, first, second: "A" if len(first) > len(second) else "B") as url:
        found = judge_answers(find_judge(url, None), rows(*answers))
    assert found["by_length"] == {
        "policy_longer": {"wins": 6, "losses": 0},
        "policy_shorter": {"wins": 0, "losses": 4},
        "equal": {"wins": 0, "losses": 0},
    }
    assert "result longer: 6 won, 0 lost" in " ".join(sentences(found))


def test_a_reply_without_a_letter_is_counted_and_thoughts_before_it_are_not() -> None:
    with serving(lambda prompt, first, second: "I cannot say.") as url:
        assert judge_answers(find_judge(url, None), rows(*GOOD))["unreadable"] == 12
    with serving(lambda *texts: f"A has a point, B too.\n\n**{prefer_good(*texts)}**") as url:
        assert judge_answers(find_judge(url, None), rows(*GOOD))["wins"] == 12


@pytest.mark.parametrize(
    ("replies", "found"),
    [
        (("A", "B"), "wins"), (("B", "A"), "losses"), (("C", "C"), "ties"), (("A", "C"), "ties"), (("C", "A"), "ties"),
        (("A", "A"), "places"), (("B", "B"), "places"), ((None, "B"), "unreadable"),
    ],
)  # fmt: skip
def test_two_replies_make_one_outcome(replies: tuple[str | None, str | None], found: str) -> None:
    assert outcome(*replies) == found


def test_the_address_is_completed_and_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_judge("http://127.0.0.1:9/", "m") == Judge("http://127.0.0.1:9/v1", "m")
    assert find_judge("https://a.test/api/v1/chat/completions", "m").url == "https://a.test/api/v1"
    assert shown("https://me:secret@a.test:8/v1?key=secret") == "https://a.test:8/v1"
    for wrong in ("127.0.0.1:8080", "ftp://a.test", "http://", "http://a.test:x/v1", "gpt-4"):
        with pytest.raises(UsageError, match="not an address"):
            find_judge(wrong, None)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret")
    seen: list[dict[str, Any]] = []
    with serving(prefer_good, seen=seen) as url:
        judge_answers(find_judge(url, "m"), rows(*GOOD[:1]))
    assert seen[0]["authorization"] == "Bearer sk-a-secret"
    assert seen[0]["path"] == "/v1/chat/completions"


def test_a_server_that_is_not_there_or_refuses_is_said() -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        find_judge("http://127.0.0.1:9/v1", None)
    with serving(prefer_good, status=401) as url, pytest.raises(UnavailableError, match="refuses: 401") as error:
        find_judge(url, None)
    assert "OPENAI_API_KEY" in str(error.value.hint)
