"""Preference pairs: which noun does the ending belong to?"""

import random
from dataclasses import dataclass

from .schemas import PROMPT_LEADS, SCHEMAS, Instance, Schema, sample_instance

TRAIN_INSTANCES_PER_SCHEMA = 22
HELDOUT_INSTANCES_PER_SCHEMA = 4

Pair = dict[str, str]


@dataclass(frozen=True)
class PairSplits:
    """The rows of both pair files, and the fillings that the held-out rows are made of."""

    train: list[Pair]
    heldout: list[Pair]
    heldout_instances: frozenset[Instance]


def pairs_of(rng: random.Random, instance: Instance) -> list[Pair]:
    """Both pairs of one filling.

    The right answer is the first noun in one and the second noun in the other, and the two completions of a pair
    differ only in the noun. So neither the order of the nouns nor a completion's length tells which is right.
    """
    schema = instance.schema
    rows = []
    for right, wrong, end in ((instance.a, instance.b, schema.a_end), (instance.b, instance.a, schema.b_end)):
        rows.append(
            {
                "prompt": f"{rng.choice(PROMPT_LEADS)}{instance.sentence} because",
                "chosen": instance.ending(right, end),
                "rejected": instance.ending(wrong, end),
            }
        )
    return rows


def answer_key(rows: list[Pair]) -> list[dict[str, str | list[str]]]:
    """Every prompt once, with the endings that are true of its sentence and those that are false.

    Args:
        rows: both pairs of each filling; each has one of the two true endings.
    """
    of_sentence: dict[str, list[Pair]] = {}
    for row in rows:
        of_sentence.setdefault(_sentence(row), []).append(row)
    prompts = dict.fromkeys(row["prompt"] for row in rows)
    return [
        {
            "prompt": prompt,
            "right": [row["chosen"] for row in of_sentence[_sentence({"prompt": prompt})]],
            "wrong": [row["rejected"] for row in of_sentence[_sentence({"prompt": prompt})]],
        }
        for prompt in prompts
    ]


def _sentence(row: Pair) -> str:
    (lead,) = (lead for lead in PROMPT_LEADS if row["prompt"].startswith(lead))
    return row["prompt"].removeprefix(lead)


def distinct_instances(rng: random.Random, schema: Schema, count: int) -> list[Instance]:
    """``count`` different fillings of one schema, in the order they were drawn."""
    drawn: dict[Instance, None] = {}
    while len(drawn) < count:
        drawn[sample_instance(rng, schema)] = None
    return list(drawn)


def make_pairs(seed: int) -> PairSplits:
    """The pairs of both splits, shuffled. The splits share no filling of a schema."""
    rng = random.Random(f"pairs-{seed}")
    train: list[Instance] = []
    heldout: list[Instance] = []
    for schema in SCHEMAS:
        drawn = distinct_instances(rng, schema, TRAIN_INSTANCES_PER_SCHEMA + HELDOUT_INSTANCES_PER_SCHEMA)
        train += drawn[:TRAIN_INSTANCES_PER_SCHEMA]
        heldout += drawn[TRAIN_INSTANCES_PER_SCHEMA:]
    return PairSplits(_shuffled_pairs(rng, train), _shuffled_pairs(rng, heldout), frozenset(heldout))


def _shuffled_pairs(rng: random.Random, instances: list[Instance]) -> list[Pair]:
    rows = [row for instance in instances for row in pairs_of(rng, instance)]
    rng.shuffle(rows)
    return rows
