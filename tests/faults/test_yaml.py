"""Presets that are bombs: refused in two seconds and a few megabytes (small mistakes: tests/config/test_faults.py)."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from config import test_faults

from qdpo.cli.main import main
from qdpo.config.resolve import resolve
from qdpo.errors import ConfigError

LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
BOMBS = {
    "a billion laughs": LAUGHS,
    "merge keys": "a: &a {x: 1}\n" + "".join(f"b{n}:\n  <<: [*a, *a, *a]\n" for n in range(1000)),
    "an alias to itself": "a: &a [*a]\n",
    "10 MB of comment": "#" * 10_000_000,
    "10 MB of one text": "about: '" + "x" * 10_000_000 + "'\n",
    "10 MB of items": "notes: [" + "a," * 5_000_000 + "]\n",
    "10 MB of keys": "".join(f"k{n:07}: 1\n" for n in range(833_000)),
    "a million lists": "notes: " + "[" * 900_000,
    "a million mappings": "about: " + "{a: " * 240_000,
    "a number of 900,000 digits": "train:\n  seed: " + "9" * 900_000 + "\n",
    "tags": "about: " + "!!python/object/apply:os.system ['touch CANARY']\n",
    "a tag of a name": "about: !!python/name:os.system\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(BOMBS[name])
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(ConfigError) as caught:
            resolve(str(file))
        seconds = time.monotonic() - started
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < 2
    assert peak < 4_000_000
    assert str(file) in caught.value.message
    assert len(f"{caught.value.message}{caught.value.hint}") < 4000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


def test_a_bomb_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(LAUGHS)
    assert main(["train", "--preset", str(tmp_path / "mine.yaml"), "--dry-run"]) == 78
    assert "anchors and aliases" in capsys.readouterr().err


def test_there_are_sixty() -> None:
    assert len(BOMBS) + len(test_faults.FAULTS) + len(test_faults.FILES) >= 60
