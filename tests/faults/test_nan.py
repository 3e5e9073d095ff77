"""NaN and infinity in weights, logits, losses and gradients: the run stops in that step, names it, keeps nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.tiny import Callback, Tiny, train_tiny, with_callbacks

from qdpo.errors import TrainingError
from qdpo.files import manifest_problems
from qdpo.model.tensors import is_finite
from qdpo.run.checkpoint import complete_steps, step_folder
from qdpo.training.recipe import Recipe

FAST = ("train.max_steps=8", "train.save_every=1", "train.keep=20", "train.eval_every=8", "samples.count=0")
SPLIT = ("packing.tokens_per_micro_batch=200",)
"""Several micro-batches a step."""


class AtStep(Callback):
    """Does something when a step begins."""

    def __init__(self, step: int, action: Callable[[Any], None]) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, recipe: Recipe) -> None:
        """Do it."""
        if recipe.progress.step + 1 == self.step:
            self.action(recipe.policy)


def set_value(parameter: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        parameter.view(-1)[7] = value


def adapter_weight(model: Any, value: float) -> None:
    """One weight of the adapter."""
    set_value(next(p for name, p in model.named_parameters() if "lora_A" in name), value)


def base_weight(model: Any, value: float) -> None:
    """One weight of the base."""
    set_value(next(p for name, p in model.named_parameters() if "input_layernorm" in name), value)


def logits(model: Any, value: float) -> None:
    """One weight of the output head, which makes one logit not finite everywhere."""
    set_value(model.get_output_embeddings().weight.data, value)


def gradient(model: Any, value: float) -> None:
    """One gradient, once."""
    parameter = next(p for name, p in model.named_parameters() if "lora_B" in name)

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        handle.remove()
        grad = grad.clone()
        grad[0, 0] = value
        return grad

    handle = parameter.register_hook(spoil)


PLACES = {
    "adapter weight": (adapter_weight, "not finite"),
    "base weight": (base_weight, r"the log-probabilities of 8 of 8 pairs are not finite .*input_layernorm"),
    "logits": (logits, r"the log-probabilities of 8 of 8 pairs are not finite"),
    "gradient": (gradient, r"the gradients are not finite"),
}


def check_stopped(tiny: Tiny, folder: Path, step: int, error: str) -> None:
    """The error names the step and rows of the data; what was saved before is whole and finite, and nothing after."""
    assert error.startswith(f"step {step}: ")
    rows = [int(row) for row in error.split("(rows ", 1)[1].split(")", 1)[0].split(", ")]
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(1, len(tiny.train.read_text().splitlines()) + 1))
    assert not (folder / "adapter").exists()
    kept = complete_steps(folder / "checkpoints")
    assert kept == list(range(1, step))
    for one in kept:
        checkpoint = step_folder(folder / "checkpoints", one)
        assert manifest_problems(checkpoint) == []
        for name in ("adapter_model.safetensors", "optimizer.safetensors"):
            assert all(map(is_finite, load_file(checkpoint / name).values()))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == step - 1
    assert all(loss > 0.1 for loss in losses)


@pytest.mark.parametrize(
    ("place", "step", "value"),
    [
        ("adapter weight", 1, float("nan")),
        ("base weight", 4, float("inf")),
        ("logits", 6, float("nan")),
        ("gradient", 3, float("inf")),
    ],
)
def test_a_value_that_is_not_finite_stops_the_run_in_its_step(
    place: str, step: int, value: float, tiny: Tiny, tmp_path: Path
) -> None:
    spoil, said = PLACES[place]
    run = tmp_path / "run"
    change = AtStep(step, lambda model: spoil(model, value))
    with with_callbacks(change), pytest.raises(TrainingError, match=said) as caught:
        train_tiny(tiny, run, *FAST, *SPLIT, "model.quantization=none")
    check_stopped(tiny, run, step, caught.value.message)


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, 6))
@pytest.mark.parametrize("place", PLACES)
def test_at_twenty_places_and_steps(place: str, step: int, tiny: Tiny, tmp_path: Path) -> None:
    value = float("nan") if step % 2 else float("-inf")
    run = tmp_path / "run"
    change = AtStep(step, lambda model: PLACES[place][0](model, value))
    with with_callbacks(change), pytest.raises(TrainingError) as caught:
        train_tiny(tiny, run, *FAST, *SPLIT, "model.quantization=none")
    check_stopped(tiny, run, step, caught.value.message)


def test_the_rows_of_a_single_pair_are_named(tiny: Tiny, tmp_path: Path) -> None:
    found: list[int] = []

    def spoil(recipe: Recipe) -> None:
        # the loss of pair 5 is not finite in the step that sees it, and only its own
        recipe.train_split.reference[5] = torch.nan
        found.append(recipe.train_split.pairs[5].row)

    said = r"step \d: the losses of 1 of 8 pairs are not finite \(rows (\d+)\)\n"
    with with_callbacks(change=spoil), pytest.raises(TrainingError, match=said) as caught:
        train_tiny(tiny, tmp_path / "run", *FAST)
    assert f"(rows {found[0]})" in caught.value.message


def test_a_gradient_is_blamed_on_its_micro_batch(tiny: Tiny, tmp_path: Path) -> None:
    seen: list[Recipe] = []
    change = AtStep(2, lambda model: gradient(model, float("nan")))
    with with_callbacks(change, change=seen.append), pytest.raises(TrainingError) as caught:
        train_tiny(tiny, tmp_path / "run", *FAST, *SPLIT)
    watch = seen[0].watch
    first = sorted(watch.rows[i] for i in watch.groups[0])
    assert 0 < len(first) < 8
    assert f"step 2: the gradients are not finite (rows {', '.join(map(str, first))})" in caught.value.message


def test_an_update_that_is_not_finite_is_found_before_it_is_saved(tiny: Tiny, tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_update(self, recipe: Recipe) -> None:
            if recipe.progress.step + 1 == 3:
                assert recipe.optimizer is not None
                for group in recipe.optimizer.param_groups:
                    group["lr"] = float("inf")

    with (
        with_callbacks(Spoil()),
        pytest.raises(TrainingError, match="step 3: the weights after the update are not finite") as caught,
    ):
        train_tiny(tiny, tmp_path / "run", *FAST)
    check_stopped(tiny, tmp_path / "run", 3, caught.value.message)


def test_a_checkpoint_with_such_a_value_is_not_written(tiny: Tiny, tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_step_end(self, recipe: Recipe) -> None:
            # after the guards have looked at the step, and before it is saved
            if recipe.progress.step == 3:
                assert recipe.optimizer is not None
                next(iter(recipe.optimizer.state.values()))["exp_avg"].view(-1)[0] = float("nan")

    with with_callbacks(Spoil()), pytest.raises(TrainingError, match="the optimizer's state has values that are not"):
        train_tiny(tiny, tmp_path / "run", *FAST)
    assert complete_steps(tmp_path / "run" / "checkpoints") == [1, 2]
    assert not list((tmp_path / "run" / "checkpoints").glob(".staging*"))


def test_an_evaluation_that_is_not_finite_names_the_heldout_rows(tiny: Tiny, tmp_path: Path) -> None:
    def spoil(recipe: Recipe) -> None:
        def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
            return None if module.training else output * torch.nan

        recipe.engine.model.model.norm.register_forward_hook(hook)

    with with_callbacks(change=spoil), pytest.raises(TrainingError, match=r"step 0: .* of 12 held-out pairs"):
        train_tiny(tiny, tmp_path / "run", *FAST, "packing.fused_norm=false")


# -------------------------------------------------------------------------------------------------------- fp16 scaler


def with_scaler(scale: float) -> Callable[[Recipe], None]:
    """Give the recipe a real GradScaler, as a run in float16 has one."""

    def change(recipe: Recipe) -> None:
        recipe.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)

    return change


def overflow(steps: set[int]) -> Callback:
    """Gradients that overflow in some steps."""

    class Overflow(Callback):
        def on_step_begin(self, recipe: Recipe) -> None:
            if recipe.progress.step + 1 in steps:
                gradient(recipe.policy, float("inf"))

    return Overflow()


def test_steps_that_the_fp16_scaler_skips_are_counted(tiny: Tiny, tmp_path: Path) -> None:
    settings = (*FAST, "train.max_grad_norm=0", "train.log_every=1")
    with with_callbacks(overflow({2, 3, 6}), change=with_scaler(2.0**10)):
        run = train_tiny(tiny, tmp_path / "run", *settings)
    lines = [line for line in run.metrics if "loss" in line]
    assert [line["skipped_steps"] for line in lines] == [0, 1, 2, 2, 2, 3, 3, 3]
    assert [line["loss_scale"] for line in lines[:4]] == [1024, 512, 256, 256]
    assert [step for step, line in enumerate(lines, 1) if "grad_norm" not in line] == [2, 3, 6]
    assert all(line["loss"] > 0.1 for line in lines)


def test_the_count_of_skipped_steps_survives_a_resume(tiny: Tiny, tmp_path: Path) -> None:
    from training.tiny import StopAt, Stopped

    settings = (*FAST, "train.max_grad_norm=0")
    with with_callbacks(overflow({2, 3}), StopAt(4), change=with_scaler(2.0**10)), pytest.raises(Stopped):
        train_tiny(tiny, tmp_path / "run", *settings)
    with with_callbacks(change=with_scaler(1.0)):
        run = train_tiny(tiny, tmp_path / "run", *settings, resume=True)
    assert run.metrics[-1].get("skipped_steps", run.metrics[-2].get("skipped_steps")) == 2
    assert [line["loss_scale"] for line in run.metrics if line.get("step") == 4 and "loss" in line] == [256]


def test_twenty_skipped_steps_in_a_row_stop_the_run(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("train.max_steps=30", "train.save_every=25", "train.eval_every=30", "samples.count=0")
    said = r"the gradients of the last 20 steps overflowed in float16 .*\(step 23, rows \d+"
    with (
        with_callbacks(overflow({2, *range(4, 30)}), change=with_scaler(2.0**30)),
        pytest.raises(TrainingError, match=said),
    ):
        train_tiny(tiny, tmp_path / "run", *settings)
