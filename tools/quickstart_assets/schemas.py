"""Winograd-style schemas: a sentence naming two nouns, and two endings of which each is true of one noun only."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from . import words as w

PROMPT_LEADS = (
    "Finish the sentence: ",
    "Complete the sentence: ",
    "Please finish this sentence: ",
    "How does this sentence end? ",
)


@dataclass(frozen=True, eq=False)  # a schema is equal to itself only
class Schema:
    """One template: ``stem`` holds {a} and {b}; ``a_end`` is true of the noun {a}, ``b_end`` of the noun {b}."""

    stem: str
    a_words: Sequence[str]
    b_words: Sequence[str]
    a_end: str
    b_end: str
    ask_a: str  # a question that {a} answers; None of the questions says which ending is right
    ask_b: str  # a question that {b} answers


@dataclass(frozen=True)
class Instance:
    """A schema with its two nouns filled in. The unit that train and held-out never share."""

    schema: Schema
    a: str
    b: str

    def fill(self, text: str) -> str:
        """``text`` with this instance's nouns in the place of {a} and {b}."""
        return text.format(a=self.a, b=self.b)

    @property
    def sentence(self) -> str:
        """The sentence up to its last noun, without a full stop."""
        return self.fill(self.schema.stem)

    def named(self, noun: str) -> str:
        """A noun as it stands in the middle of a sentence: ``the trophy``."""
        return f"the {noun}"

    def ending(self, noun: str, end: str) -> str:
        """A completion: ``the trophy was too big.``"""
        return f"{self.named(noun)} {end}."


def _schema(stem: str, a: Sequence[str], b: Sequence[str], ends: tuple[str, str], asks: tuple[str, str]) -> Schema:
    return Schema(stem, a, b, *ends, *asks)


SCHEMAS: tuple[Schema, ...] = (
    _schema("The {a} did not fit in the {b}", w.ITEMS, w.CONTAINERS, ("was too big", "was too small"),
            ("What did not fit in the {b}?", "What did the {a} not fit in?")),
    _schema("The {a} did not go through the {b}", w.FURNITURE, w.OPENINGS, ("was too wide", "was too narrow"),
            ("What did not go through the {b}?", "What did the {a} not go through?")),
    _schema("The {a} overtook the {b}", w.FAST_VEHICLES, w.SLOW_VEHICLES, ("was going so fast", "was going so slow"),
            ("What overtook the {b}?", "What did the {a} overtake?")),
    _schema("The {a} did not catch the {b}", w.PREDATORS, w.PREY, ("was too slow", "was too quick"),
            ("What did not catch the {b}?", "What did the {a} not catch?")),
    _schema("The {a} did not lift the {b}", w.ROPES, w.LOADS, ("was too weak", "was too heavy"),
            ("What did not lift the {b}?", "What did the {a} not lift?")),
    _schema("The {a} did not cover the {b}", w.COVERS, w.SURFACES, ("was too short", "was too long"),
            ("What did not cover the {b}?", "What did the {a} not cover?")),
    _schema("The {a} did not cut the {b}", w.BLADES, w.HARD_THINGS, ("was too blunt", "was too hard"),
            ("What did not cut the {b}?", "What did the {a} not cut?")),
    _schema("The {a} crashed right through the {b}", w.BALLS, w.BREAKABLES, ("was made of steel", "was made of paper"),
            ("What crashed right through the {b}?", "What did the {a} crash through?")),
    _schema("We saw no {a} behind the {b}", w.BUILDINGS, w.BLOCKERS, ("was too low", "was too tall"),
            ("What did we not see behind the {b}?", "What was in front of the {a}?")),
    _schema("The {a} did not cross the {b}", w.VEHICLES, w.BRIDGES, ("was too heavy", "was too weak"),
            ("What did not cross the {b}?", "What did the {a} not cross?")),
    _schema("The {a} did not reach the {b}", w.BOATS, w.FAR_PLACES, ("was too slow", "was too far away"),
            ("What did not reach the {b}?", "What did the {a} not reach?")),
    _schema("The {a} outgrew the {b}", w.PLANTS, w.POTS, ("was growing tall", "was rather small"),
            ("What outgrew the {b}?", "What did the {a} outgrow?")),
    _schema("The {a} did not light up the {b}", w.LAMPS, w.ROOMS, ("was too dim", "was too large"),
            ("What did not light up the {b}?", "What did the {a} not light up?")),
    _schema("The {a} fell off the {b}", w.ITEMS, w.SURFACES, ("was round and smooth", "was not level"),
            ("What fell off the {b}?", "What did the {a} fall off?")),
    _schema("The {a} thanked the {b}", w.CHILDREN, w.GROWNUPS, ("had received help", "had given help"),
            ("Who thanked the {b}?", "Whom did the {a} thank?")),
    _schema("The {a} bought the cake from the {b}", w.CHILDREN, w.GROWNUPS, ("wanted to eat it", "wanted to sell it"),
            ("Who bought the cake?", "Who sold the cake?")),
    _schema("The {a} lent the bicycle to the {b}", w.GROWNUPS, w.CHILDREN, ("did not need it", "wanted to borrow it"),
            ("Who lent the bicycle?", "Who got the bicycle?")),
    _schema("The {a} asked the {b} a question", w.CHILDREN, w.GROWNUPS, ("wanted to learn", "knew the answer"),
            ("Who asked a question?", "Whom did the {a} ask?")),
    _schema("The {a} followed the {b} through the town", w.CHILDREN, w.GROWNUPS, ("had no map", "knew the way"),
            ("Who followed the {b}?", "Whom did the {a} follow?")),
    _schema("The {a} comforted the {b}", w.GROWNUPS, w.CHILDREN, ("was kind", "was crying"),
            ("Who comforted the {b}?", "Whom did the {a} comfort?")),
    _schema("The {a} visited the {b} in hospital", w.GROWNUPS, w.CHILDREN, ("was worried", "was ill"),
            ("Who visited the {b}?", "Whom did the {a} visit?")),
    _schema("The {a} taught music to the {b}", w.GROWNUPS, w.CHILDREN, ("played very well", "wanted to play"),
            ("Who taught music?", "Whom did the {a} teach?")),
    _schema("The {a} shared the bread with the {b}", w.GROWNUPS, w.CHILDREN, ("had too much", "was hungry"),
            ("Who shared the bread?", "Who got some bread?")),
    _schema("The {a} hid from the {b}", w.CHILDREN, w.GROWNUPS, ("was afraid", "was angry"),
            ("Who hid from the {b}?", "From whom did the {a} hide?")),
    _schema("The {a} said sorry to the {b}", w.CHILDREN, w.GROWNUPS, ("had made a mistake", "had been hurt"),
            ("Who said sorry?", "To whom did the {a} say sorry?")),
    _schema("The {a} paid the {b} for the work", w.GROWNUPS, w.CHILDREN, ("owned the house", "painted the house"),
            ("Who paid the {b}?", "Whom did the {a} pay?")),
    _schema("The {a} carried the bags for the {b}", w.GROWNUPS, w.CHILDREN, ("was strong", "had a broken arm"),
            ("Who carried the bags?", "Whose bags did the {a} carry?")),
)  # fmt: skip


def sample_instance(rng: random.Random, schema: Schema) -> Instance:
    """One filling of a schema, with two different nouns."""
    a = rng.choice(schema.a_words)
    b = rng.choice([word for word in schema.b_words if word != a])
    return Instance(schema, a, b)
