"""What `qdpo.redact` takes for an access token is on no card and on no page, wherever in a run directory it stands."""

from __future__ import annotations

from typing import Any

import pytest
from report import extras

from qdpo.report.card import render_card
from qdpo.report.page import render_page

SHAPES = {
    "the hub's": "hf_" + "AbCdEfGhIjKlMnOpQrSt",
    "GitHub's": "ghp_" + "AbCdEfGhIjKlMnOpQrSt0123",
    "GitHub's, fine-grained": "github_pat_" + "AbCdEfGhIj_KlMnOpQrSt",
    "GitLab's": "glpat-" + "AbCdEfGhIjKlMnOpQrSt",
    "wandb's": "wandb_v1_" + "AbCdEfGhIjKlMnOpQrSt",
    "OpenAI's": "sk-" + "AbCdEfGhIjKlMnOpQrSt",
    "OpenAI's, of a project": "sk-proj-" + "AbCdEfGh-IjKlMnOp_QrSt",
    "a password in an address": "somebody:pw0fNobody",
}


def shown(secret: str) -> str:
    """A text that holds the secret in its usual place."""
    return f"see https://{secret}@example.org/x" if ":" in secret else f"my token is {secret}."


def with_text(example: Any, text: str) -> str:
    """Card and page of a run that holds a text in names, settings, notes, checks, data, samples and pairs."""
    example.run |= {"name": text, "state": text, "command": f"qdpo train --data {text}"}
    example.run["checks"] = [{"name": text, "detail": text}]
    example.run["base"] |= {"name": text, "license": text}
    example.run["hardware"]["name"] = example.run["dtype"]["reason"] = text
    example.config |= {"about": text, "notes": [text]}
    for part in ("train", "heldout"):
        example.run["data"][part] |= {"name": text, "split": text}
        example.data[part]["left_out"] = {text: {"count": 1, "first_rows": [text]}}
    folder = example.write()
    extras.write_samples(folder, [(text, f"{text} 1", f"{text} 2")])
    extras.write_scored_pairs(folder, [(text, text, text)] * 3)
    extras.write_heldout(folder, "pairs-x.json", text)
    return render_card(folder) + render_page(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_token_of_any_shape(example: Any, shape: str) -> None:
    text = with_text(example, shown(SHAPES[shape]))
    assert SHAPES[shape] not in text
    assert "[token removed]" in text


def test_what_the_environment_calls_a_token(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_PASSWORD", "correct-horse")
    text = with_text(example, shown("correct-horse"))
    assert "correct-horse" not in text
    assert "[token removed]" in text


@pytest.mark.parametrize(
    "name", ["hf_internal_testing", "somebody/sk-mistral-7b-instruct-v0.2", "https://example.org/a@b"]
)
def test_a_name_is_no_token(example: Any, name: str) -> None:
    text = with_text(example, name)
    assert "[token removed]" not in text
    assert name in text
