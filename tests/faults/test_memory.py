"""Memory that runs out at any micro-batch: smaller passes, the same result; and what is said when nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from training.tiny import Callback, StopAt, Stopped, Tiny, TinyRun, train_tiny, with_callbacks

from qdpo.errors import MemoryShortageError
from qdpo.run.checkpoint import newest_whole, whole_checkpoint
from qdpo.training.recipe import Recipe
from qdpo.training.stages import memory

FAST = (
    *("train.max_steps=6", "train.save_every=2", "train.eval_every=3", "samples.count=0", "model.quantization=none"),
    # nothing to give back but the size of the passes
    "packing.checkpoint_layers=1",
)
# eight pairs of about 60 tokens: one micro-batch
WHOLE = "packing.tokens_per_micro_batch=1000"
DROPOUT = ("train.disable_dropout=false", "lora.lora_dropout=0.2")


class Shortage:
    """Raises out-of-memory in chosen passes through the model, by a forward hook or in the backward pass.

    Args:
        passes: numbers of the passes with gradients, or, when `grad` is false, of those without.
        backward: in the backward pass of these, not in the forward pass.
        grad: which passes are counted.
        error: what is raised.
    """

    def __init__(
        self,
        passes: set[int] | Callable[[int], bool],
        *,
        backward: bool = False,
        grad: bool = True,
        error: BaseException | None = None,
    ) -> None:
        self.wanted = passes if callable(passes) else passes.__contains__
        self.backward, self.grad = backward, grad
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.seen = 0

    def __call__(self, recipe: Recipe) -> None:
        recipe.engine.model.model.norm.register_forward_hook(self.hook)

    def hook(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        """Count the pass; fail where it is wanted."""
        if torch.is_grad_enabled() != self.grad:
            return output
        self.seen += 1
        if not self.wanted(self.seen):
            return output
        if not self.backward:
            raise self.error

        def fail(gradient: torch.Tensor) -> torch.Tensor:
            raise self.error

        output.register_hook(fail)
        return output


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The run that memory suffices for."""
    return train_tiny(tiny, tmp_path_factory.mktemp("undisturbed") / "run", *FAST, WHOLE)


def same(run: TinyRun, expected: TinyRun) -> None:
    """The same losses, metrics and adapter, up to the order of sums."""
    assert run.losses == pytest.approx(expected.losses, abs=1e-5)
    for ours, theirs in zip(run.measured(), expected.measured(), strict=True):
        if ours["step"] <= 2:
            # before the first update policy and reference are equal, and rounding decides which pairs are won
            for line in (ours, theirs):
                line.pop("rewards/accuracies", None)
                line.pop("eval_rewards/accuracies", None)
        assert ours == pytest.approx(theirs, abs=2e-4)
    for name, weight in expected.adapter.items():
        assert (run.adapter[name] - weight).abs().max() < 1e-4


ERRORS = {
    "cuda": None,
    "python": MemoryError(),
    "cpu allocator": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
}


@pytest.mark.parametrize(("passes", "backward"), [({1}, False), ({4}, True), ({2, 3, 9}, True)])
def test_a_micro_batch_that_does_not_fit_is_halved(
    passes: set[int],
    backward: bool,
    undisturbed: TinyRun,
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with with_callbacks(change=Shortage(passes, backward=backward)):
        run = train_tiny(tiny, tmp_path / "run", *FAST, WHOLE)
    same(run, undisturbed)
    memory = run.record["memory"]
    assert len(memory["halved"]) == len(passes)
    assert memory["tokens_per_micro_batch"] == memory["halved"][-1]["to"] < 500
    assert memory["tokens_without_grad"] == memory["configured"]["tokens_without_grad"]
    assert f"packing.tokens_per_micro_batch 1,000 -> {memory['halved'][0]['to']:,}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["python", "cpu allocator"])
def test_the_machines_own_memory_counts_too(kind: str, undisturbed: TinyRun, tiny: Tiny, tmp_path: Path) -> None:
    with with_callbacks(change=Shortage({3}, error=ERRORS[kind])):
        run = train_tiny(tiny, tmp_path / "run", *FAST, WHOLE)
    same(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("number", range(1, 13))
def test_at_every_micro_batch(number: int, backward: bool, tiny: Tiny, tmp_path: Path) -> None:
    split = "packing.tokens_per_micro_batch=300"
    expected = train_tiny(tiny, tmp_path / "expected", *FAST, split)
    with with_callbacks(change=Shortage({number}, backward=backward)):
        run = train_tiny(tiny, tmp_path / "run", *FAST, split)
    same(run, expected)
    assert len(run.record["memory"]["halved"]) == 1


class SmallerFrom(Callback):
    """Lowers the token budget when a step begins."""

    def __init__(self, step: int, tokens: int) -> None:
        self.step, self.tokens = step, tokens

    def on_step_begin(self, recipe: Recipe) -> None:
        """Lower it."""
        if recipe.progress.step + 1 == self.step:
            recipe.budgets.tokens_per_micro_batch = self.tokens


def test_dropout_repeats(tiny: Tiny, tmp_path: Path) -> None:
    with with_callbacks(change=Shortage({3}, backward=True)):
        run = train_tiny(tiny, tmp_path / "run", *FAST, *DROPOUT, WHOLE)
    lower = SmallerFrom(3, run.record["memory"]["tokens_per_micro_batch"])
    with with_callbacks(lower):
        planned = train_tiny(tiny, tmp_path / "planned", *FAST, *DROPOUT, WHOLE)
    assert run.sha256 == planned.sha256
    assert run.losses == planned.losses


def test_a_loss_that_looks_at_the_whole_step(tiny: Tiny, tmp_path: Path) -> None:
    aot = ("loss.loss_type=aot",)
    expected = train_tiny(tiny, tmp_path / "expected", *FAST, *aot, WHOLE)
    with with_callbacks(change=Shortage({2, 5}, backward=True)):
        run = train_tiny(tiny, tmp_path / "run", *FAST, *aot, WHOLE)
    same(run, expected)


def test_the_budget_is_remembered_by_a_resume(
    undisturbed: TinyRun, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with with_callbacks(StopAt(4), change=Shortage({3})), pytest.raises(Stopped):
        train_tiny(tiny, tmp_path / "run", *FAST, WHOLE)
    found = json.loads((tmp_path / "run" / "run.json").read_text())["memory"]
    capsys.readouterr()
    run = train_tiny(tiny, tmp_path / "run", *FAST, WHOLE, resume=True)
    assert f"with the token budgets found before: {found['tokens_per_micro_batch']:,} with" in capsys.readouterr().err
    assert run.record["memory"] == found
    same(run, undisturbed)


def test_passes_without_gradients_are_halved_too(
    undisturbed: TinyRun, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with with_callbacks(change=Shortage({1, 3}, grad=False)):
        run = train_tiny(tiny, tmp_path / "run", *FAST, WHOLE)
    same(run, undisturbed)
    assert [entry["setting"] for entry in run.record["memory"]["halved"]] == ["packing.tokens_without_grad"] * 2
    assert "out of memory in the evaluation" in capsys.readouterr().err


def test_the_reference_pass_is_halved_too(
    undisturbed: TinyRun, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with short_reference(Shortage({1}, grad=False)):
        run = train_tiny(tiny, tmp_path / "run", *FAST, WHOLE, "packing.reference_cache=run")
    assert run.record["memory"]["halved"][0]["when"] == "the reference pass"
    same(run, undisturbed)


@contextmanager
def short_reference(shortage: Shortage) -> Iterator[None]:
    """Memory that runs out in the reference pass, before there is a trainer."""
    from qdpo.training import run as run_module

    original = run_module.reference_pass

    def with_hook(run: Any, engine: Any, *args: Any) -> Any:
        handle = engine.model.model.norm.register_forward_hook(shortage.hook)
        try:
            return original(run, engine, *args)
        finally:
            handle.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "reference_pass", with_hook)
        yield


def test_nothing_left_to_halve(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shortage = Shortage(lambda number: number >= 4)
    with with_callbacks(change=shortage), pytest.raises(MemoryShortageError) as caught:
        train_tiny(tiny, run, *FAST, WHOLE, "packing.checkpoint_layers=auto")
    assert caught.value.exit_code == 71
    assert "out of memory in step 4, in a pass of a single pair (row " in caught.value.message
    assert caught.value.hint is not None
    # the tiny preset checkpoints, and is not quantized here: of what is left, what costs least
    assert caught.value.hint.startswith("try --set model.quantization=nf4, or --set data.max_length=")
    record = json.loads((run / "run.json").read_text())
    newest = newest_whole(run / "checkpoints", lambda folder: whole_checkpoint(folder, record["id"]))
    assert newest == run / "checkpoints" / "step-000002"


def test_memory_that_runs_out_elsewhere_is_explained(tiny: Tiny, tmp_path: Path) -> None:
    class Full(Callback):
        def on_update(self, recipe: Recipe) -> None:
            if recipe.progress.step == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with with_callbacks(Full()), pytest.raises(MemoryShortageError, match="out of memory in step 3") as caught:
        train_tiny(tiny, tmp_path / "run", *FAST)
    assert "--set train.optim=paged_adamw_8bit" in str(caught.value.hint)


def test_layers_are_given_back_before_passes_are_made_smaller(
    undisturbed: TinyRun, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with with_callbacks(change=Shortage({2, 3})):
        run = train_tiny(tiny, tmp_path / "run", *FAST, WHOLE, "packing.checkpoint_layers=auto")
    said = capsys.readouterr().err
    given = "out of memory in step 2: 1 of 2 layers are computed twice instead of 0, and again from the start of it"
    assert said.index(given) < said.index("out of memory in step 2: packing.tokens_per_micro_batch")
    assert len(run.record["memory"]["halved"]) == 1
    same(run, undisturbed)


@pytest.fixture
def longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest micro-batch is tried, as on a card."""
    monkeypatch.setattr(memory, "tries_longest", lambda run: True)


def test_trying_the_longest_micro_batch_first_changes_nothing(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train_tiny(tiny, tmp_path / "plain", *FAST, *DROPOUT)
    capsys.readouterr()
    monkeypatch.setattr(memory, "tries_longest", lambda run: True)
    tried = train_tiny(tiny, tmp_path / "tried", *FAST, *DROPOUT)
    said = capsys.readouterr().err
    assert said.index("ok memory: the longest micro-batch (") < said.index("step 0/6")
    assert tried.sha256 == plain.sha256
    assert tried.measured() == plain.measured()


def test_a_shortage_shows_before_the_first_step(
    undisturbed: TinyRun, tiny: Tiny, tmp_path: Path, longest_first: None
) -> None:
    with with_callbacks(change=Shortage({1, 2})):
        run = train_tiny(tiny, tmp_path / "run", *FAST, WHOLE)
    whens = [entry["when"] for entry in run.record["memory"]["halved"]]
    assert whens == ["the longest micro-batch, tried first"] * 2
    same(run, undisturbed)
