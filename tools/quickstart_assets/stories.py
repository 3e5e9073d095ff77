"""Short texts of the toy world, each with questions that the text answers."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from . import words as w
from .schemas import SCHEMAS, sample_instance


@dataclass(frozen=True)
class Story:
    """A text, and (question, answer) pairs about it."""

    text: str
    questions: list[tuple[str, str]] = field(default_factory=list)


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def gift(rng: random.Random) -> Story:
    """A thing changes hands and is put away."""
    giver, taker = rng.sample(w.PEOPLE, 2)
    thing, color, place = rng.choice(w.THINGS), rng.choice(w.COLORS), rng.choice(w.CONTAINERS)
    she, _ = w.NAMES[taker]
    text = f"{giver} had a {color} {thing}. {giver} gave the {thing} to {taker}. "
    text += rng.choice(
        [
            f"{taker} put the {thing} in the {place}.",
            f"{she.capitalize()} was {rng.choice(w.FEELINGS)} and put it in the {place}.",
        ]
    )
    return Story(
        text,
        [
            (f"Who gave the {thing} to {taker}?", f"{giver} gave the {thing} to {taker}."),
            (f"Where is the {thing}?", f"The {thing} is in the {place}."),
            (f"What color is the {thing}?", f"The {thing} is {color}."),
            (f"Who has the {thing} now?", f"{taker} has the {thing} now."),
        ],
    )


def outing(rng: random.Random) -> Story:
    """Two people go to two places."""
    first, second = rng.sample(w.PEOPLE, 2)
    here, there = rng.sample(w.PLACES, 2)
    day, weather = rng.choice(w.DAYS), rng.choice(w.WEATHER)
    text = f"On {day} it was {weather}. {first} went to the {here} and {second} went to the {there}."
    if rng.random() < 0.5:
        she, _ = w.NAMES[second]
        text += f" In the evening {she} came home and drank some {rng.choice(w.DRINKS)}."
    return Story(
        text,
        [
            (f"Where did {first} go?", f"{first} went to the {here}."),
            (f"Where did {second} go?", f"{second} went to the {there}."),
            (f"Who went to the {there}?", f"{second} went to the {there}."),
            (f"How was the weather on {day}?", f"On {day} it was {weather}."),
        ],
    )


def shopping(rng: random.Random) -> Story:
    """Somebody buys fruit and cooks."""
    name, friend = rng.sample(w.PEOPLE, 2)
    (some, more), (fruit, other) = rng.sample(w.NUMBERS, 2), rng.sample(w.FRUITS, 2)
    food = rng.choice(w.FOODS)
    she, her = w.NAMES[name]
    text = f"{name} bought {some} {fruit} and {more} {other} at the market. "
    text += rng.choice(
        [
            f"At home {she} made some {food} for {friend}.",
            f"Then {she} went home with {her} friend {friend} and they ate some {food}.",
            f"{friend} liked the {other} best.",
        ]
    )
    return Story(
        text,
        [
            (f"How many {fruit} did {name} buy?", f"{name} bought {some} {fruit}."),
            (f"How many {other} did {name} buy?", f"{name} bought {more} {other}."),
            (f"Who bought the {fruit}?", f"{name} bought the {fruit}."),
        ],
    )


def portrait(rng: random.Random) -> Story:
    """A person, a job, a house, a habit."""
    name, friend = rng.sample(w.PEOPLE, 2)
    she, her = w.NAMES[name]
    job, color, place = rng.choice(w.JOBS), rng.choice(w.COLORS), rng.choice(w.PLACES)
    skill, game, drink = rng.choice(w.SKILLS), rng.choice(w.GAMES), rng.choice(w.DRINKS)
    text = f"{name} is {_article(job)} and lives in a {color} house near the {place}."
    text += rng.choice(
        [
            f" Every morning {she} drinks {drink} and reads the paper.",
            f" {she.capitalize()} likes to {skill} with {her} friend {friend}.",
            f" On {rng.choice(w.DAYS)} {she} plays {game} with {friend}.",
        ]
    )
    return Story(
        text,
        [
            (f"What is the job of {name}?", f"{name} is {_article(job)}."),
            (f"Where does {name} live?", f"{name} lives in a {color} house near the {place}."),
        ],
    )


def animal(rng: random.Random) -> Story:
    """A fact of natural history."""
    name = rng.choice(list(w.ANIMALS))
    kind, home, food = w.ANIMALS[name]
    text = f"{_article(name).capitalize()} is {_article(kind)}. It lives in the {home} and eats {food}."
    if rng.random() < 0.5:
        text += f" {w.KIND_FACTS[kind]}"
    person = rng.choice(w.PEOPLE)
    if rng.random() < 0.5:
        text += f" {person} saw {_article(name)} on {rng.choice(w.DAYS)}."
    return Story(
        text,
        [
            (f"What does {_article(name)} eat?", f"{_article(name).capitalize()} eats {food}."),
            (f"Where does {_article(name)} live?", f"{_article(name).capitalize()} lives in the {home}."),
            (f"What is {_article(name)}?", f"{_article(name).capitalize()} is {_article(kind)}."),
        ],
    )


def event(rng: random.Random) -> Story:
    """A schema's sentence whose cause stays open; its questions ask only who did what, and in which order."""
    instance = sample_instance(rng, rng.choice(SCHEMAS))
    schema = instance.schema
    text = f"{instance.sentence}."
    if rng.random() < 0.3:
        text = f"On {rng.choice(w.DAYS)} it was {rng.choice(w.WEATHER)}. {text}"
    if rng.random() < 0.4:
        teller, listener = rng.sample(w.PEOPLE, 2)
        text += f" {teller} told {listener} about it."
    first, second = instance.named(instance.a), instance.named(instance.b)
    questions = [
        (instance.fill(schema.ask_a), f"It was {first}."),
        (instance.fill(schema.ask_b), f"It was {second}."),
        (f"Is {first} named first or second?", f"{_sentence_start(first)} is named first."),
        (f"Is {second} named first or second?", f"{_sentence_start(second)} is named second."),
    ]
    return Story(text, questions)


def _sentence_start(text: str) -> str:
    return text[0].upper() + text[1:]


STORY_KINDS: list[Callable[[random.Random], Story]] = [gift, outing, shopping, portrait, animal, event]


def sample_story(rng: random.Random) -> Story:
    """A story of any kind."""
    return rng.choice(STORY_KINDS)(rng)
