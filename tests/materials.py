"""Where tests find real models, tokenizers, templates and published results."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MATERIAL = Path(__file__).parent / "material"
"""What ships with the tests; its README says where each folder is from, and under which licence."""

STORIES = MATERIAL / "stories260K"
"""A trained Llama of 260,032 parameters with its tokenizer."""


def llama_cpp(name: str) -> Path:
    """A file under `models/` of llama.cpp's source tree at $QDPO_LLAMA_CPP; without that the test is skipped.

    llama.cpp holds vocabularies and templates that come under terms of their own, so they are not among `MATERIAL`.
    """
    tree = os.environ.get("QDPO_LLAMA_CPP")
    if not tree:
        pytest.skip(f"QDPO_LLAMA_CPP does not name llama.cpp's source tree, where models/{name} is (CONTRIBUTING.md)")
    path = Path(tree) / "models" / name
    assert path.is_file(), f"QDPO_LLAMA_CPP={tree} has no models/{name}"
    return path
