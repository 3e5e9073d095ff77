"""Preference pairs to measure on: four synthetic length profiles, and files of real pairs."""

from __future__ import annotations

import math
import random
from pathlib import Path

from qdpo.config.schema import DataSection
from qdpo.data.pairs import TokenPair
from qdpo.data.prepare import prepare
from qdpo.engine.layout import packed_tokens

SYNTHETIC = {
    "W1": "prompt 512, answers 32-64 tokens",
    "W2": "prompt 150-300, answers 200-400 tokens",
    "W3": "prompt 15-45, answers 3-12 tokens",
    "W4": "prompt 20-800, answers 10-500 tokens, log-uniform",
}
FIRST_WORD, EOS = 4, 2


def synthetic(name: str, n: int, seed: int = 0, vocabulary: int = 32000) -> list[TokenPair]:
    """n pairs of random tokens with the lengths of one of `SYNTHETIC`, EOS at the end of every answer."""
    rng = random.Random(seed)

    def log_uniform(low: int, high: int) -> int:
        return int(math.exp(rng.uniform(math.log(low), math.log(high))))

    def lengths() -> tuple[int, int, int]:
        if name == "W1":
            return 512, rng.randint(32, 64), rng.randint(32, 64)
        if name == "W2":
            return rng.randint(150, 300), rng.randint(200, 400), rng.randint(200, 400)
        if name == "W3":
            return rng.randint(15, 45), rng.randint(3, 12), rng.randint(3, 12)
        return log_uniform(20, 800), log_uniform(10, 500), log_uniform(10, 500)

    def words(count: int) -> list[int]:
        return [rng.randrange(FIRST_WORD, vocabulary) for _ in range(count)]

    pairs = []
    for row in range(n):
        prompt, chosen, rejected = lengths()
        pairs.append(TokenPair(row, words(prompt), [*words(chosen), EOS], [*words(rejected), EOS]))
    return pairs


def of_length(tokens: int, each: int = 512, seed: int = 0, vocabulary: int = 32000) -> list[TokenPair]:
    """Equal pairs of `each` packed tokens that fill `tokens` together: the linear-cost curve."""
    rng = random.Random(seed)
    answer = each // 4
    pairs = []
    for row in range(tokens // each):
        prompt = [rng.randrange(FIRST_WORD, vocabulary) for _ in range(each - 2 * answer)]
        chosen, rejected = (
            [first, *(rng.randrange(FIRST_WORD, vocabulary) for _ in range(answer))] for first in (5, 6)
        )
        pairs.append(TokenPair(row, prompt, chosen, rejected))
    assert sum(packed_tokens(pair) for pair in pairs) == tokens
    return pairs


def from_file(path: Path, tokenizer_folder: Path, n: int, seed: int = 0) -> list[TokenPair]:
    """n random pairs of a preference file, tokenised as `qdpo train` would (plain text without a chat template).

    Args:
        path: any preference file that qdpo reads.
        tokenizer_folder: a folder with the tokenizer's files.
        n: pairs.
        seed: of the choice.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    section = DataSection(
        name=str(path),
        template="auto" if tokenizer.chat_template else "none",
        max_length=1536,
        max_prompt_length=1024,
        on_bad_row="drop",
    )
    data = prepare(section, tokenizer, seed)
    return random.Random(seed).sample(data.train, n)
