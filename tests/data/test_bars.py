"""Time and memory: 10,000 rows in 10 s of one core, and memory that does not grow with the file."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data import real_tokenizers

from qdpo.config.schema import DataSection
from qdpo.data.prepare import prepare

STEMS, ENDS = ("con", "re", "in", "trans", "over", ""), ("late", "form", "mit", "do", "the", "act")
WORDS = [stem + end for stem in STEMS for end in ENDS]


def write_rows(path: Path, rows: int, answer_words: int) -> None:
    """Pairs whose prompts have 60 words and whose answers have `answer_words`."""
    draw = random.Random(1)

    def text(n: int) -> str:
        return " ".join(draw.choices(WORDS, k=n))

    with path.open("w") as stream:
        for i in range(rows):
            row = {"prompt": f"{i} {text(60)}", "chosen": text(answer_words), "rejected": text(answer_words)}
            stream.write(json.dumps(row) + "\n")


def test_ten_thousand_rows_in_ten_seconds(tmp_path: Path):
    tokenizer = real_tokenizers.load("mistral-v1")
    write_rows(tmp_path / "a.jsonl", 10_000, 160)
    started = time.process_time()
    data = prepare(DataSection(name=str(tmp_path / "a.jsonl"), template="zephyr"), tokenizer, 1)
    assert time.process_time() - started <= 10
    assert len(data.train) + len(data.heldout) == 10_000


# Run in a process of its own: the peak of this one has other tests in it.
MEASURE = """
import sys
from data import real_tokenizers
from data.toy_tokenizers import byte_level
from qdpo.config.schema import DataSection
from qdpo.data.prepare import prepare
from qdpo.hardware import resident_peak
tokenizer = real_tokenizers.load(sys.argv[2]) if len(sys.argv) > 2 else byte_level()
data = prepare(DataSection(name=sys.argv[1], template="zephyr", max_length=4096), tokenizer, 1)
print(len(data.train) + len(data.heldout), resident_peak())
"""


def peak_of(path: Path, *tokenizer: str) -> tuple[int, int]:
    """Pairs, and the peak memory in bytes of a process that prepares the file.

    Args:
        path: the file.
        tokenizer: one of `real_tokenizers.NAMES`, to tokenise with it instead of bytes.
    """
    command = [sys.executable, "-c", MEASURE, str(path), *tokenizer]
    result = subprocess.run(command, capture_output=True, text=True, env=_env())
    assert result.returncode == 0, result.stderr
    pairs, peak = map(int, result.stdout.split())
    return pairs, peak


def _env() -> dict[str, str]:
    import os

    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    write_rows(tmp_path / "small.jsonl", 500, 1500)
    write_rows(tmp_path / "large.jsonl", 3_000, 1500)
    grown = (tmp_path / "large.jsonl").stat().st_size - (tmp_path / "small.jsonl").stat().st_size
    small, large = peak_of(tmp_path / "small.jsonl"), peak_of(tmp_path / "large.jsonl")
    assert (small[0], large[0]) == (500, 3_000)
    assert grown > 30_000_000
    assert large[1] - small[1] < grown / 2


@pytest.mark.slow
def test_a_gigabyte_within_a_gibibyte(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", 1_000, 160)
    lines = (tmp_path / "a.jsonl").read_text()
    with (tmp_path / "big.jsonl").open("w") as stream:
        written = n = 0
        while written < 1_000_000_000:
            written += stream.write(lines.replace('"prompt": "', f'"prompt": "{n} '))
            n += 1
    pairs, peak = peak_of(tmp_path / "big.jsonl", "mistral-v1")
    assert pairs == 1000 * n
    print(f"{pairs:,} pairs, peak {peak:,} bytes")
    assert peak <= 1 << 30
