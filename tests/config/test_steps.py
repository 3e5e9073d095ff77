"""Steps and epochs, against the published runs."""

import pytest

from qdpo.config.steps import steps_for, steps_per_epoch


@pytest.mark.parametrize(
    ("rows", "pairs", "epochs", "max_steps", "steps"),
    [
        (61_966, 32, 1.0, None, 1_936),  # zephyr-7b-alpha
        (61_966, 192, 1.0, None, 322),  # juanako-7b-v1
        (6_750, 128, 2.0, None, 104),  # zephyr-7b-gemma, DiscoPOP: its card's table ends at step 100
        (12_859, 16, 1.0, 200, 200),  # NeuralHermes
        (32, 16, 1.0, None, 2),
        (33, 16, 1.0, None, 2),
        (15, 16, 1.0, None, 1),
        (1, 16, 3.0, None, 3),
        (160, 16, 0.25, None, 3),
        (160, 16, 0.01, None, 1),
        (160, 16, 9.0, 1, 1),
    ],
)
def test_steps(rows: int, pairs: int, epochs: float, max_steps: int | None, steps: int):
    assert steps_for(rows, pairs, epochs, max_steps) == steps


@pytest.mark.parametrize(
    ("rows", "pairs", "step", "epoch"),
    [(61_966, 32, 1_900, 0.98), (61_966, 192, 300, 0.93), (6_750, 128, 100, 1.9)],
)
def test_epochs_of_the_cards_tables(rows: int, pairs: int, step: int, epoch: float):
    assert round(step * pairs / rows, 2) == epoch
    assert step <= steps_for(rows, pairs, 2.0)


def test_garrulus_and_neuralhermes_see_3200_pairs():
    assert steps_for(1_600, 16, 1.0, 200) * 16 == 3_200
    assert steps_per_epoch(1_600, 16) * 2 == 200


@pytest.mark.parametrize("wrong", [(0, 16, 1.0, None), (16, 0, 1.0, None), (16, 16, 0.0, None), (16, 16, 1.0, 0)])
def test_nothing_to_do_is_an_error(wrong: tuple[int, int, float, int | None]):
    with pytest.raises(ValueError, match="must be positive"):
        steps_for(*wrong)
