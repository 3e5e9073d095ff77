"""The table of architectures in docs/engine.md, made again from scratch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from engine.sweep import probe, sweep, table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "engine.md"


def documented() -> dict[str, str]:
    """Types and their layouts as the document lists them."""
    section = DOCUMENT.read_text().partition("## Architectures")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_ ]+)` \| (\d+) \| (.*) \|$", section, re.MULTILINE)
    ways = {kind: way for way, _, kinds in rows for kind in kinds.split(", ")}
    assert len(ways) == sum(int(count) for _, count, _ in rows)
    return ways


@pytest.mark.slow
def test_the_documented_table_is_what_the_probe_decides() -> None:
    found, listed = sweep(), documented()
    assert {k: (listed.get(k), found.get(k)) for k in {*found, *listed} if listed.get(k) != found.get(k)} == {}
    assert table(found) in DOCUMENT.read_text()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_the_document_is_right_about_a_few(kind: str) -> None:
    assert documented()[kind] == probe(kind).way == "packed"
