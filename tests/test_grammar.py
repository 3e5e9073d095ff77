"""Words that go with a count, and articles."""

import pytest

from qdpo.grammar import agreed, counted, with_article


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 pairs"), (1, "1 pair"), (2, "2 pairs"), (1_000, "1,000 pairs"), (1_001, "1,001 pairs")]
)
def test_a_count_has_the_noun_that_goes_with_it(count: int, said: str) -> None:
    assert counted(count, "pair") == said


def test_other_words_go_with_it_too() -> None:
    assert [counted(n, "pair is", "pairs are") for n in (0, 1, 2)] == ["0 pairs are", "1 pair is", "2 pairs are"]
    assert [agreed(n, "has", "have") for n in (0, 1, 2)] == ["have", "has", "have"]


def test_articles() -> None:
    assert [with_article(noun) for noun in ("system", "user", "assistant")] == ["a system", "a user", "an assistant"]
