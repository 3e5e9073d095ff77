"""The packed engine and our recipe's step against stock TRL: the same batch, fp32, every number that TRL logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.trl_cpu import install_torch_head, make_rows, make_trl_trainer, trl_batch, trl_metrics

from qdpo.config.loss import LossSettings
from qdpo.config.schema import DataSection, ModelSection, PackingSection, RunConfig
from qdpo.data.pairs import TokenPair
from qdpo.engine import attention
from qdpo.engine.engine import Engine
from qdpo.engine.layout import packed_tokens
from qdpo.hardware import find_device
from qdpo.training.out_of_memory import Budgets
from qdpo.training.recipe import Recipe, Split
from qdpo.training.stages.state import RunState

TOLERANCE = 1e-5

ROWS = [
    *make_rows(5),
    # completions that begin alike, share their prompt's continuation, contain one another, or stand alone
    {"prompt": "w3 w4 w5", "chosen": " w6 w7 w8 w9", "rejected": " w6 w7 w10"},
    {"prompt": "w11 w12", "chosen": " w13 w14 w15 w16 w17", "rejected": " w13"},
    {"prompt": "", "chosen": "w20 w21 w22 w23 w24 w25 w26 w27 w28 w29 w30", "rejected": "w20 w21 w31"},
    # every word once, so that some token is the model's first choice and the token accuracy is not 0
    {"prompt": "w5 w9", "chosen": " " + " ".join(f"w{i}" for i in range(3, 64)), "rejected": " w3 w5"},
]

NOT_COMPARED = {
    "eval_num_tokens",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
}
"""What TRL and transformers log of an evaluation that says nothing of its result."""

LOSSES: list[dict[str, Any]] = [
    {"loss_type": ["sigmoid"]},
    {"loss_type": ["ipo"], "beta": 0.3},
    {"loss_type": ["discopop"], "beta": 0.05},
    {"loss_type": ["aot"], "label_smoothing": 0.1},
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
]

ONE_PACK, ONE_PAIR_A_PACK = 10**6, 1


def token_pairs(trl_rows: Any) -> list[TokenPair]:
    """The ids that TRL's own tokenisation made of the rows."""
    return [TokenPair(i, r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]) for i, r in enumerate(trl_rows)]


def make_recipe(policy: Any, pairs: list[TokenPair], loss: LossSettings, folder: Path, budget: int) -> Recipe:
    """Our recipe around TRL's policy, the reference computed by the engine."""
    attention.install(policy.get_base_model())
    engine = Engine(policy.get_base_model(), torch.device("cpu"))
    with policy.disable_adapter():
        logps = engine.score_all(pairs, budget).logps
    split = Split(pairs, logps.view(2, -1).T.contiguous())
    packing = PackingSection(tokens_per_micro_batch=budget, tokens_without_grad=budget)
    config = RunConfig(
        name="tiny", model=ModelSection(name="tiny"), data=DataSection(name="tiny"), packing=packing, loss=loss
    )
    run, budgets = RunState(folder, config, find_device()), Budgets(config)
    return Recipe(run, policy, engine, train=split, heldout=split, text=[], budgets=budgets)


def gradients(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradient of every trained parameter, by name; clears them."""
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad and p.grad is not None}
    policy.zero_grad()
    return found


def assert_near(name: str, ours: torch.Tensor | float, theirs: torch.Tensor | float) -> None:
    """Within TOLERANCE, relative to max(1, |x|)."""
    ours, theirs = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
    assert ours.shape == theirs.shape, name
    error = ((ours - theirs).abs() / theirs.abs().clamp(min=1.0)).max().item()
    assert error <= TOLERANCE, f"{name}: ours {ours}, TRL {theirs}: off by {error:.1e}"


@pytest.mark.parametrize("budget", [ONE_PACK, 40, ONE_PAIR_A_PACK])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "+".join(loss["loss_type"]))
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_step_has_the_loss_gradients_and_metrics_of_trl(
    kind: str, loss: dict[str, Any], budget: int, tmp_path: Path
) -> None:
    settings = LossSettings(**loss)
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in loss.items() if k != "loss_type"}
    with install_torch_head():
        trl = make_trl_trainer(settings.loss_type, rows=ROWS, output_dir=tmp_path, kind=kind, **options)
        policy, batch = trl.model, trl_batch(trl)
        trl_loss = trl.compute_loss(policy, batch)
        trl_loss.backward()
    theirs, trl_gradients = trl_metrics(trl), gradients(policy)
    assert trl_gradients

    recipe = make_recipe(policy, token_pairs(trl.train_dataset), settings, tmp_path, budget)
    ours_loss = recipe.forward_backward(range(len(ROWS)))
    ours, ours_gradients = recipe.step_metrics(), gradients(policy)

    assert_near("loss", ours_loss, trl_loss.detach())
    assert ours_gradients.keys() == trl_gradients.keys()
    for name, gradient in trl_gradients.items():
        assert_near(name, ours_gradients[name], gradient)
    assert set(theirs) - set(ours) == {"num_tokens"}
    assert set(ours) - set(theirs) == {"logps/accuracies"}
    for name in set(theirs) & set(ours):
        assert_near(name, ours[name], theirs[name])
    # The comparison says nothing if policy and reference are the same.
    assert abs(theirs["rewards/margins"]) > 1e-2
    assert theirs["mean_token_accuracy"] > 0
    assert max(g.abs().max() for g in trl_gradients.values()) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_an_evaluation_has_the_loss_and_metrics_of_trl(kind: str, tmp_path: Path) -> None:
    settings = LossSettings()
    with install_torch_head():
        trl = make_trl_trainer(
            "sigmoid", rows=ROWS, output_dir=tmp_path, kind=kind, per_device_eval_batch_size=len(ROWS)
        )
        policy = trl.model
        theirs = trl.evaluate(trl.train_dataset) | trl.state.log_history[-1]
    recipe = make_recipe(policy, token_pairs(trl.train_dataset), settings, tmp_path, budget=40)
    ours = {f"eval_{name}": value for name, value in recipe.score_heldout().items()}

    compared = {name for name in theirs if name.startswith("eval_")} - NOT_COMPARED
    assert compared == set(ours) - {"eval_logps/accuracies"}
    for name in compared:
        assert_near(name, ours[name], theirs[name])
    assert abs(theirs["eval_rewards/margins"]) > 1e-2


def test_the_rows_exercise_shared_prefixes_and_several_packs(tmp_path: Path) -> None:
    with install_torch_head():
        trl = make_trl_trainer("sigmoid", rows=ROWS, output_dir=tmp_path)
    pairs = token_pairs(trl.train_dataset)
    assert len(pairs) == len(ROWS)
    assert sum(pair.chosen[0] == pair.rejected[0] for pair in pairs) >= 3
    assert any(len(pair.prompt) == 1 for pair in pairs)
    assert sum(map(packed_tokens, pairs)) > 2 * 40
