"""Segments that grow are asked for in time, and never against the user's own setting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qdpo.allocator import EXPANDABLE, NAMES, allocator, expand_segments


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_segments_grow_by_default() -> None:
    assert allocator() is None
    expand_segments()
    assert allocator() == os.environ["PYTORCH_ALLOC_CONF"] == EXPANDABLE


@pytest.mark.parametrize("name", NAMES)
def test_the_users_own_setting_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "expandable_segments:False")
    expand_segments()
    assert allocator() == "expandable_segments:False"
    assert [known for known in NAMES if known in os.environ] == [name]


def test_nothing_is_promised_when_cuda_is_in_use_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    expand_segments()
    assert allocator() is None


CHILD = """
import sys
from qdpo.cli import main
from qdpo.cli import doctor
seen = []
doctor.run = lambda args: seen.append("torch" in sys.modules) or 0
from qdpo.allocator import allocator
print(main.main(["doctor"]), seen, allocator())
"""


def test_the_command_line_asks_before_torch_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert done.stdout == f"0 [False] {EXPANDABLE}\n"


def test_torch_reads_these_variables() -> None:
    """The names are those in the installed torch's own header, in its order."""
    header = Path(torch.__file__).parent / "include" / "c10" / "cuda" / "CUDAAllocatorConfig.h"
    text = header.read_text()
    places = [text.find(f'get_env("{name}")') for name in NAMES]
    assert -1 not in places
    assert places == sorted(places)
