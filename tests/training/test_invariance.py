"""How a step's pairs are cut into micro-batches is a matter of memory and never changes what is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training.tiny import Tiny, TinyRun, train_tiny

from qdpo.data.pairs import TokenPair
from qdpo.engine.layouts import cut_packed as cut

PLAIN_ADAM = "train.optim=adamw_torch"
ONE_PACK = 100_000
# Packed pairs of the tiny data have 50 to 66 tokens: so many tokens hold two.
TWO_PAIRS, ONE_PAIR, UNEVEN = 140, 1, 300
LOSSES = {
    "sigmoid": ("loss.loss_type=sigmoid",),
    "aot": ("loss.loss_type=aot",),
    "aot_unpaired": ("loss.loss_type=aot_unpaired", "loss.label_smoothing=0.1"),
    "sigmoid+sft": ("loss.loss_type=sigmoid,sft", "loss.loss_weights=[1.0, 0.5]"),
}


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory):
    """Runs whose steps are one pack each, by loss, each trained once."""
    known: dict[str, TinyRun] = {}

    def get(loss: str) -> TinyRun:
        if loss not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            known[loss] = train_tiny(tiny, folder, *budget(ONE_PACK), *LOSSES[loss], PLAIN_ADAM)
        return known[loss]

    return get


def budget(tokens: int) -> tuple[str, str]:
    return f"packing.tokens_per_micro_batch={tokens}", f"packing.tokens_without_grad={tokens}"


def assert_same_run(first: TinyRun, second: TinyRun, tolerance: float = 1e-5) -> None:
    """Losses and adapters agree, relative to max(1, |x|) and to each weight's norm."""
    losses = torch.tensor([first.losses, second.losses], dtype=torch.float64)
    assert losses.shape[1] == 20
    assert (losses[0] - losses[1]).abs().max() <= tolerance
    assert first.adapter.keys() == second.adapter.keys()
    for name, weight in first.adapter.items():
        # Adam's first steps have the size of the learning rate however small a gradient is, so that a gradient near 0
        # turns rounding into a step: in norm that is nothing.
        error = (weight - second.adapter[name]).norm() / weight.norm()
        assert error <= tolerance, f"{name}: off by {error:.1e}"


@pytest.mark.parametrize(
    ("tokens", "loss"),
    [
        (ONE_PAIR, "sigmoid"),
        (TWO_PAIRS, "sigmoid"),
        (UNEVEN, "sigmoid"),
        (ONE_PAIR, "aot"),
        (UNEVEN, "aot_unpaired"),
        (TWO_PAIRS, "sigmoid+sft"),
    ],
)
def test_the_cut_into_micro_batches_does_not_change_the_run(
    tokens: int, loss: str, whole, tiny: Tiny, tmp_path: Path
) -> None:
    cut_run = train_tiny(tiny, tmp_path / "run", *budget(tokens), *LOSSES[loss], PLAIN_ADAM)
    assert_same_run(cut_run, whole(loss))
    # The comparison says nothing of a run that stands still.
    assert abs(cut_run.losses[0] - cut_run.losses[-1]) > 0.02


def test_gradient_checkpointing_does_not_change_the_run(whole, tiny: Tiny, tmp_path: Path) -> None:
    overrides = ("train.gradient_checkpointing=false", *budget(ONE_PACK), PLAIN_ADAM)
    assert_same_run(train_tiny(tiny, tmp_path / "run", *overrides), whole("sigmoid"))


@pytest.fixture(scope="module")
def least(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The run with the least memory: both layers are computed twice, no weight is kept."""
    folder = tmp_path_factory.mktemp("least") / "run"
    return train_tiny(tiny, folder, "packing.checkpoint_layers=2", "packing.keep_dequantized=0", *budget(TWO_PAIRS))


@pytest.mark.parametrize(("recomputed", "kept"), [("1", "0"), ("0", "0"), ("0", "1"), ("0", "2"), ("auto", "auto")])
def test_no_number_of_layers_changes_a_bit(
    recomputed: str, kept: str, least: TinyRun, tiny: Tiny, tmp_path: Path
) -> None:
    overrides = (f"packing.checkpoint_layers={recomputed}", f"packing.keep_dequantized={kept}", *budget(TWO_PAIRS))
    run = train_tiny(tiny, tmp_path / "run", *overrides)
    assert run.record["quantization"]["method"] == "nf4"
    expected = tuple(0 if number == "auto" else int(number) for number in (recomputed, kept))
    assert (run.record["engine"]["checkpointed_layers"], run.record["engine"]["kept_layers"]) == expected
    assert run.losses == least.losses
    assert run.measured() == least.measured()
    assert run.sha256 == least.sha256


def test_the_learning_rate_does_change_the_run(whole, tiny: Tiny, tmp_path: Path) -> None:
    """The comparison above would notice a change of a thousandth."""
    other = train_tiny(tiny, tmp_path / "run", "train.learning_rate=1.001e-3", *budget(ONE_PACK), PLAIN_ADAM)
    with pytest.raises(AssertionError):
        assert_same_run(other, whole("sigmoid"))


def test_coupled_losses_are_not_those_of_their_parts(whole) -> None:
    """Sorting across the batch matters on this data, so that cutting could have changed it."""
    for loss in ("aot", "aot_unpaired"):
        difference = torch.tensor(whole(loss).losses) - torch.tensor(whole("sigmoid").losses)
        assert difference.abs().max() > 1e-4, loss


@pytest.mark.parametrize(("tokens", "packs"), [(ONE_PAIR, 8), (TWO_PAIRS, 4), (ONE_PACK, 1)])
def test_budgets_of_these_tests_cut_as_they_say(tokens: int, packs: int) -> None:
    pairs = [TokenPair(i, [0] * 40, [1] * 10, [2] * (10 + i)) for i in range(8)]
    assert len(cut(pairs, tokens)) == packs
