"""Which of two written answers a judge prefers: base's or result's, by any server that speaks OpenAI's chat protocol.

Every prompt is asked twice, with the answers in either order; only a preference that survives the change of places
counts, because judges like places (Zheng et al. 2023, arXiv:2306.05685), and length is reported beside it, because they
like length (Dubois et al. 2024, arXiv:2404.04475). The object (`RUN/evaluation/judge.json`):

    schema, kind (judge), created, qdpo
    judge             the server's address without its query, and the model's name
    step              of the adapter whose answers were judged
    prompts           how many; identical answers among them are not asked about: `identical`
    wins, losses      of the result, in both orders
    ties              the judge said tie twice, or once and then not the other answer
    places            the judge changed its mind with the places: no preference
    unreadable        no verdict could be read from a reply
    win_share         wins of wins and losses {value, low, high}, Wilson 95 %; null where there is none
    p_value           exact sign test of wins against losses
    first_share       share of all verdicts for an answer that were for the first place {value, low, high}
    words             mean words of an answer: base, policy
    by_length         policy_longer, policy_shorter, equal (within 10 % or a word): wins and losses
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from qdpo.errors import UnavailableError, UsageError, first_line
from qdpo.evaluation.statistics import mcnemar_exact, wilson
from qdpo.evaluation.summary import length_matched
from qdpo.evaluation.written import Row

KEY = "OPENAI_API_KEY"
"""The environment variable whose value a server gets as its bearer token."""

SECONDS = 120.0
"""What one reply may take."""

REPLY_TOKENS = 512
"""Tokens of a reply at the most; some models think before they answer."""

INSTRUCTION = (
    "You compare two answers to the same prompt. Judge which one follows the prompt better and is more correct and "
    "useful. Do not prefer an answer because it comes first or because it is longer. Reply with one letter: A if the "
    "first is better, B if the second is better, C if neither is."
)
VERDICT = re.compile(r"\b([ABC])\b")


@dataclass(frozen=True)
class Judge:
    """A server and its model.

    Attributes:
        url: up to and with the version, such as http://127.0.0.1:8080/v1.
        model: the name that requests carry.
    """

    url: str
    model: str

    def prefers(self, prompt: str, first: str, second: str) -> str | None:
        """`A` for the first answer, `B` for the second, `C` for neither; None when the reply says nothing of it.

        Raises:
            UnavailableError: the server does not answer as it should.
        """
        question = f"[Prompt]\n{prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\nA, B or C?"
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": REPLY_TOKENS}
        reply = request(self.url, "/chat/completions", body)
        try:
            text = reply["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise UnavailableError(
                f"{shown(self.url)} sent a reply without choices[0].message.content",
                "--judge takes the address of a server with OpenAI's /chat/completions",
            ) from error
        # what a model thought comes first; its verdict is the last letter
        found = VERDICT.findall(text)
        return str(found[-1]) if found else None


def find_judge(url: str, model: str | None) -> Judge:
    """The judge at an address; without a name the first model that the server lists.

    Raises:
        UsageError: that is no address.
        UnavailableError: nobody is there, or no model is listed.
    """
    url = url.rstrip("/").removesuffix("/chat/completions")
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UsageError(f"--judge {url}: not an address", "for example --judge http://127.0.0.1:8080/v1")
    if not parts.path:
        url += "/v1"
    if model is None:
        listed = request(url, "/models", None)
        try:
            model = str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise UnavailableError(f"{shown(url)} lists no model", "name one with --judge-model NAME") from error
    return Judge(url, model)


def request(url: str, path: str, body: dict[str, Any] | None) -> Any:
    """The JSON that a server replies to a POST, or without a body to a GET.

    Raises:
        UnavailableError: it cannot be reached, refuses, takes too long, or replies with something else.
    """
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {}
    try:
        if body is None:
            reply = httpx.get(url + path, headers=headers, timeout=SECONDS)
        else:
            reply = httpx.post(url + path, headers=headers, json=body, timeout=SECONDS)
        reply.raise_for_status()
        return reply.json()
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        hint = f"set {KEY}" if code in (401, 403) else "is that the address up to /v1, and the model's name?"
        said = " ".join(error.response.text.split())[:200]
        raise UnavailableError(f"the judge at {shown(url)} refuses: {code} {said}", hint) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UnavailableError(
            f"the judge at {shown(url)} does not answer: {type(error).__name__}: {first_line(error, 200)}",
            "is the server running? --judge URL is its address up to /v1",
        ) from error


def shown(url: str) -> str:
    """An address without user, password and query."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def judge_answers(judge: Judge, rows: Sequence[Row], advance: Callable[[int], object] = lambda asked: None) -> Any:
    """What a judge says of the answers in lines of samples.jsonl, all of one evaluation.

    Args:
        judge: is asked twice a prompt.
        rows: with `prompt`, `base` and `policy`.
        advance: told how many prompts were done, after each.

    Returns:
        The object above, without schema, kind, created and qdpo.

    Raises:
        UnavailableError: the server does not answer.
    """
    outcomes: list[str] = []
    places: Counter[str] = Counter()
    for row in rows:
        if row["policy"].split() == row["base"].split():
            outcomes.append("identical")
        else:
            replies = (
                judge.prefers(row["prompt"], row["policy"], row["base"]),
                judge.prefers(row["prompt"], row["base"], row["policy"]),
            )
            places.update(reply for reply in replies if reply in ("A", "B"))
            outcomes.append(outcome(*replies))
        advance(1)
    counts = Counter(outcomes)
    wins, losses = counts["wins"], counts["losses"]
    by_length: dict[str, Counter[str]] = {name: Counter() for name in ("policy_longer", "policy_shorter", "equal")}
    for row, found in zip(rows, outcomes, strict=True):
        by_length[longer(row)][found] += 1
    return {
        "judge": {"url": shown(judge.url), "model": judge.model},
        "step": rows[0]["step"],
        "prompts": len(rows),
        **{name: counts[name] for name in ("wins", "losses", "ties", "places", "identical", "unreadable")},
        "win_share": wilson(wins, wins + losses).as_dict() if wins + losses else None,
        "p_value": mcnemar_exact(wins, losses) if wins + losses else None,
        "first_share": wilson(places["A"], places.total()).as_dict() if places else None,
        "words": {side: fmean(len(row[side].split()) for row in rows) for side in ("base", "policy")},
        "by_length": {name: {"wins": c["wins"], "losses": c["losses"]} for name, c in by_length.items()},
    }


def outcome(policy_first: str | None, base_first: str | None) -> str:
    """What two replies come to: with the result's answer in the first place, and with the base's."""
    if policy_first is None or base_first is None:
        return "unreadable"
    votes = {"A": 1, "B": -1, "C": 0}
    score = votes[policy_first] - votes[base_first]
    if abs(score) == 2:
        return "wins" if score > 0 else "losses"
    return "places" if policy_first == base_first != "C" else "ties"


def longer(row: Row) -> str:
    """Whose answer has more words."""
    base, policy = (np.array(len(row[side].split())) for side in ("base", "policy"))
    if length_matched(base, policy):
        return "equal"
    return "policy_longer" if policy > base else "policy_shorter"


def sentences(result: dict[str, Any]) -> list[str]:
    """The result in words."""
    judge, n = result["judge"], result["prompts"]
    said = [
        f"{judge['model']} at {judge['url']} compared {n} answers of base and result (step {result['step']}), twice"
    ]
    decided = result["wins"] + result["losses"]
    rest = ", ".join(
        f"{result[name]} {words}"
        for name, words in (
            ("ties", "ties"),
            ("places", "changed with the places"),
            ("identical", "identical"),
            ("unreadable", "unreadable"),
        )
        if result[name]
    )
    if decided:
        share = result["win_share"]
        certain = "beyond chance" if result["p_value"] < 0.05 else "within chance (at 5 %)"
        said.append(
            f"result preferred {result['wins']}, base preferred {result['losses']}: the result wins "
            f"{share['value']:.0%} [{share['low']:.0%}, {share['high']:.0%}] of {decided} decided, "
            f"{certain} (50 % is chance; sign test p = {result['p_value']:.2g})" + (f"; {rest}" if rest else "")
        )
    else:
        said.append(f"nothing was decided, so nothing can be told: {rest}")
    if first := result["first_share"]:
        said.append(f"the first place got {first['value']:.0%} [{first['low']:.0%}, {first['high']:.0%}] of the votes")
    words, length = result["words"], result["by_length"]
    won = "; ".join(
        f"{name}: {length[key]['wins']} won, {length[key]['losses']} lost"
        for key, name in (("policy_longer", "result longer"), ("equal", "equal"), ("policy_shorter", "result shorter"))
    )
    said.append(f"length: {words['policy']:.0f} words, the base's {words['base']:.0f} ({won})")
    return said
