"""The held-out pairs as texts with what base and policy say of them: `evaluation/pairs.jsonl`, for the report page.

One JSON object a line, in the order of the held-out pairs:

    row                 row of the pair in its source
    prompt              its turns, each after the word for who speaks
    chosen, rejected    texts, special tokens left out
    margin              beta * (log-ratio of chosen - log-ratio of rejected), the reward margin
    chosen_change, rejected_change    nats that each completion has gained over the reference
    prefers_chosen      whether the policy gives the chosen completion the higher log-probability
    chosen_tokens, rejected_tokens
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdpo.data.pairs import TokenPair
from qdpo.data.turns import spoken
from qdpo.files import atomic_write, explained
from qdpo.run.folder import EVALUATION, PAIRS


def write_pairs(
    run_dir: Path,
    pairs: Sequence[TokenPair],
    policy: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    beta: float,
    tokenizer: Any,
) -> Path:
    """Write the scored pairs into a run directory.

    Args:
        run_dir: the run directory.
        pairs: n token pairs.
        policy: (n, 2) log-probabilities under the policy, chosen and rejected, in nats.
        reference: (n, 2) the same under the reference.
        beta: of the rewards, 1/nats.
        tokenizer: decodes.

    Raises:
        DiskError, OutputError: the file cannot be written.
    """

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    lines = []
    for pair, after, before in zip(pairs, policy, reference, strict=True):
        chosen, rejected = float(after[0]) - float(before[0]), float(after[1]) - float(before[1])
        row = {
            "row": pair.row,
            "prompt": spoken(tokenizer, pair.prompt),
            "chosen": text(pair.chosen),
            "rejected": text(pair.rejected),
            "margin": beta * (chosen - rejected),
            "chosen_change": chosen,
            "rejected_change": rejected,
            "prefers_chosen": float(after[0]) > float(after[1]),
            "chosen_tokens": len(pair.chosen),
            "rejected_tokens": len(pair.rejected),
        }
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    path = run_dir / EVALUATION / PAIRS
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(lines))
    return path
