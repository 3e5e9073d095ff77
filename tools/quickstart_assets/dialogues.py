"""Conversations of the toy world, as lists of {role, content} messages."""

import random
from collections.abc import Set

from .schemas import PROMPT_LEADS, SCHEMAS, Instance, sample_instance
from .stories import Story, animal, event, sample_story
from .words import ALL_WORDS

Messages = list[dict[str, str]]

SYSTEM_PROMPTS = (
    "",
    "You are Garrulus, a small jay that likes to talk.",
    "You are a helpful assistant.",
    "Answer in one short sentence.",
)
SMALL_TALK = (
    ("Hello!", "Hello! How are you today?"),
    ("Who are you?", "I am Garrulus, a small jay that likes to talk."),
    ("What is your name?", "My name is Garrulus."),
    ("What can you do?", "I can finish sentences and answer simple questions."),
    ("How are you?", "I am well, thank you."),
    ("Thank you!", "You are welcome."),
    ("What is a jay?", "A jay is a bird. It lives in the forest and eats acorns."),
    ("Tell me a story.", None),
)
ECHO_LEADS = ("Repeat: ", "Say this again: ")


def _turn(user: str, assistant: str) -> Messages:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def finish_sentence(rng: random.Random, excluded: Set[Instance]) -> Messages:
    """A schema finished with a noun and an ending that are drawn independently.

    So the base model learns the form of the answer, and that in a conversation each noun goes with each ending equally
    often, true or not. Held-out fillings are left out, so that it has never seen them finished.
    """
    instance = sample_instance(rng, rng.choice(SCHEMAS))
    while instance in excluded:
        instance = sample_instance(rng, rng.choice(SCHEMAS))
    noun = rng.choice([instance.a, instance.b])
    end = rng.choice([instance.schema.a_end, instance.schema.b_end])
    return _turn(f"{rng.choice(PROMPT_LEADS)}{instance.sentence} because", instance.ending(noun, end))


def reading(rng: random.Random, story: Story) -> Messages:
    """A text followed by a question about it, sometimes by a second one."""
    questions = rng.sample(story.questions, 2)
    messages = _turn(f"{story.text} {questions[0][0]}", questions[0][1])
    if rng.random() < 0.3:
        messages += _turn(*questions[1])
    return messages


def echo(rng: random.Random) -> Messages:
    """A few words to repeat: nothing but copying predicts the answer."""
    text = " ".join(rng.sample(ALL_WORDS, rng.randint(3, 7)))
    return _turn(f"{rng.choice(ECHO_LEADS)}{text}", text)


def small_talk(rng: random.Random) -> Messages:
    """A greeting, a question about the bird itself, a story or a fact about an animal."""
    if rng.random() < 0.5:
        return _turn(*rng.choice(animal(rng).questions))
    user, assistant = rng.choice(SMALL_TALK)
    return _turn(user, assistant or sample_story(rng).text)


def conversation(rng: random.Random) -> Messages:
    """A conversation about anything but the end of a sentence."""
    draw = rng.random()
    if draw < 0.1:
        return echo(rng)
    if draw < 0.5:
        return reading(rng, event(rng))
    if draw < 0.88:
        return reading(rng, sample_story(rng))
    return small_talk(rng)


def with_system_prompt(rng: random.Random, messages: Messages) -> Messages:
    """The same conversation, every fifth with a system prompt."""
    if rng.random() < 0.2:
        return [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}, *messages]
    return messages
