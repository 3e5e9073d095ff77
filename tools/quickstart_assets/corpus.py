"""The base model's training texts, and the held-out texts that its NLL is measured on."""

import random
from collections.abc import Set

import jinja2

from .dialogues import conversation, finish_sentence, with_system_prompt
from .schemas import SCHEMAS, Instance, sample_instance
from .stories import sample_story

FINISH_SHARE = 0.3  # share of texts that finish a sentence in a conversation

# Zephyr's format: markers are plain text, every turn ends in EOS. BOS stands in the template, so that whoever renders
# it gets exactly one.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_TEMPLATE = jinja2.Template(CHAT_TEMPLATE)


def render(messages: list[dict[str, str]]) -> str:
    """A conversation as text, without BOS."""
    return _TEMPLATE.render(messages=messages, bos_token="", eos_token="</s>", add_generation_prompt=False)


def facts(rng: random.Random) -> str:
    """What is true of single nouns, whatever they stand beside. So the base knows which noun an ending is true of."""
    said = []
    for _ in range(rng.randint(2, 5)):
        instance = sample_instance(rng, rng.choice(SCHEMAS))
        noun, end = rng.choice([(instance.a, instance.schema.a_end), (instance.b, instance.schema.b_end)])
        sentence = instance.ending(noun, end)
        said.append(sentence[0].upper() + sentence[1:])
    return " ".join(said)


def sample_text(rng: random.Random, excluded: Set[Instance]) -> str:
    """One text of the corpus."""
    if rng.random() < FINISH_SHARE:
        return render(with_system_prompt(rng, finish_sentence(rng, excluded)))
    return sample_other_text(rng)


def sample_other_text(rng: random.Random) -> str:
    """One text without a sentence finished in a conversation: a conversation, facts, or one or two stories."""
    draw = rng.random()
    if draw < 0.35:
        return render(with_system_prompt(rng, conversation(rng)))
    if draw < 0.75:
        return facts(rng)
    return " ".join(sample_story(rng).text for _ in range(rng.choice([1, 1, 2])))


def make_heldout_texts(seed: int, count: int) -> list[str]:
    """``count`` different texts of the corpus's distribution.

    Finished sentences are left out: what preference training is meant to change says nothing about what it forgets.
    """
    rng = random.Random(f"heldout-texts-{seed}")
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[sample_other_text(rng)] = None
    return list(texts)


def make_corpus(seed: int, count: int, excluded: Set[Instance], heldout_texts: Set[str]) -> list[str]:
    """``count`` texts, none of which is a held-out text."""
    rng = random.Random(f"corpus-{seed}")
    texts: list[str] = []
    while len(texts) < count:
        text = sample_text(rng, excluded)
        if text not in heldout_texts:
            texts.append(text)
    return texts
