"""What follows from what was measured: limits are settings of the run, and a figure that says nothing is not given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from export import toys

from qdpo.config.resolve import resolve
from qdpo.config.schema import PRECISIONS, VerifySection
from qdpo.errors import ConfigError
from qdpo.evaluation.statistics import Estimate
from qdpo.export.formats import FORMATS
from qdpo.export.gguf.kinds import KINDS
from qdpo.export.source import load_run
from qdpo.export.verify.answers import Answers
from qdpo.export.verify.checks import Check
from qdpo.export.verify.measures import Divergence, preference
from qdpo.export.verify.parity import limits_of
from qdpo.export.verify.verdict import (
    Finding,
    judge_answers,
    judge_divergence,
    judge_preference,
    judge_projection,
    verdict_of,
)


def test_every_precision_that_can_be_exported_can_have_a_limit() -> None:
    assert set(KINDS) <= set(PRECISIONS)
    assert {"float32", "float16", "bfloat16", "awq"} <= set(PRECISIONS)
    assert "awq" in FORMATS


@pytest.mark.parametrize("setting", ["verify.max_kl.q9=1", "verify.max_kl.f16=-1", "verify.min_projection=2"])
def test_a_limit_that_means_nothing_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0].split(".")[1]):
        resolve("quickstart", [setting])


def test_limits_come_from_the_run(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    folder = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base)))
    assert limits_of(load_run(folder)) == VerifySection(), "without a configuration, the defaults"
    toys.add_data(folder, base)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace('"answers": 3', '"pairs": 7, "max_kl": {"q4_0": 0.25}'))
    limits = limits_of(load_run(folder))
    assert (limits.pairs, limits.max_kl) == (7, {"q4_0": 0.25})


# --- the gates -------------------------------------------------------------------------------------------------------


def projection(value: float, **changes: Any) -> dict[str, Any]:
    entry = {"low": value - 0.01, "high": value + 0.01, "tensors": 14, "left_out": 0, "metric": "inputs"}
    return {"value": value, **entry, "worst": [{"name": "model.layers.3.mlp.up_proj.weight", "value": 0.4}], **changes}


@pytest.mark.parametrize(
    ("value", "result"), [(0.9, "passed"), (1.1, "passed"), (0.89, "lost"), (1.11, "lost"), (9.0, "lost"), (-1, "lost")]
)
def test_the_projection_must_be_near_1_on_either_side(value: float, result: str) -> None:
    found = judge_projection(projection(value), VerifySection())
    assert found.result == result
    assert "farthest from 1: model.layers.3.mlp.up_proj 0.40" in found.detail
    assert judge_projection(projection(0.7), VerifySection(min_projection=0.6)).result == "passed"


def test_the_projection_says_in_which_metric_it_is() -> None:
    assert "in the metric of the layers' inputs" in judge_projection(projection(1), VerifySection()).detail
    plain = judge_projection(projection(1, metric="plain", left_out=2), VerifySection())
    assert "plain" in plain.detail
    assert "2 changed tensors without moments are left out" in plain.detail
    assert judge_projection(None, VerifySection()).result == "cannot be told"


def divergence(total: float, base: float, moved: float = 0.0) -> Divergence:
    return Divergence(*(Estimate(value, value, value) for value in (total, base, total - base, moved)), tokens=100)


@pytest.mark.parametrize(
    ("total", "base", "limits", "result"),
    [
        (0.019, 0.01, {}, "passed"),
        (0.021, 0.01, {}, "lost"),
        (9e-4, 1e-9, {}, "passed"),
        (1.1e-3, 1e-9, {}, "lost"),
        (float("nan"), 0.01, {}, "lost"),
        (0.019, 0.01, {"q4_k_m": 0.015}, "lost"),
        (0.1, 0.01, {"q4_k_m": 0.15}, "passed"),
        (0.019, 0.01, {"q8_0": 0.015}, "passed"),
    ],
)
def test_the_divergence_is_held_to_a_limit_or_to_the_bases_own_rounding(
    total: float, base: float, limits: dict[str, float], result: str
) -> None:
    found = judge_divergence(divergence(total, base), "q4_k_m", VerifySection(max_kl=limits))
    assert found.result == result
    assert "the rounding of the base alone costs" in found.detail


def test_a_hundredth_of_what_training_has_moved_is_no_loss_and_a_quarter_is() -> None:
    strongly = VerifySection()
    assert judge_divergence(divergence(0.0011, 0.00028), "q4_k_m", strongly).result == "lost"
    assert judge_divergence(divergence(0.0011, 0.00028, 0.39), "q4_k_m", strongly).result == "passed"
    assert judge_divergence(divergence(0.39 / 4, 0.00028, 0.39), "q4_k_m", strongly).result == "lost"


# --- the preference --------------------------------------------------------------------------------------------------


def gains(count: int, kept: float, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    trained = 0.1 + 0.2 * torch.randn(count, generator=chance, dtype=torch.float64)
    return kept * trained + noise * torch.randn(count, generator=chance, dtype=torch.float64), trained


def test_slope_and_share_are_what_they_are_defined_as() -> None:
    own, trained = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([1.0, 2.0, 3.0]).double()
    found = preference(own, trained)
    assert found is not None
    assert found.slope.value == pytest.approx(5 / 14)
    assert found.share.value == pytest.approx(3 / 6)
    assert preference(own, torch.zeros(3).double()) is None


def test_a_shift_of_all_margins_is_no_preference() -> None:
    """Measured against the unrounded base, a shift by the base's rounding would count as 600 % of the gain."""
    _, trained = gains(400, 1.0, 0.0)
    shifted_base, shifted_policy = torch.full_like(trained, 0.5), trained + 0.5
    found = preference(shifted_policy - shifted_base, trained)
    assert found is not None
    assert found.slope.value == pytest.approx(1)
    assert found.share.value == pytest.approx(1)


def test_many_pairs_say_how_much_is_kept() -> None:
    found = judge_preference(preference(*gains(1000, 0.9, 0.1)))
    assert found.result == "reported"
    assert found.detail.startswith("slope 0.8") or found.detail.startswith("slope 0.9")
    assert judge_preference(preference(*gains(1000, 0.5, 0.1))).result == "lost"


def test_few_pairs_give_no_figure_but_how_many_are_needed() -> None:
    found = judge_preference(preference(*gains(16, 0.9, 1.0)))
    assert found.result == "cannot be told"
    assert "from 16 pairs (+-" in found.detail
    assert "are needed for +-0.1" in found.detail
    assert "slope" not in found.detail
    for few in (1, 2, 7):
        exact = judge_preference(preference(*gains(few, 0.9, 0.0)))
        assert exact.result == "cannot be told", "an interval of so few pairs is worth nothing, however narrow"
        assert f"from {few} pair" in exact.detail
        assert "at least 8 are needed" in exact.detail
    assert judge_preference(None).result == "cannot be told"


def test_as_many_pairs_as_were_said_to_be_needed_are_enough() -> None:
    few = preference(*gains(64, 0.9, 0.5))
    assert few is not None
    assert few.needed is not None
    assert not few.told
    many = preference(*gains(2 * few.needed, 0.9, 0.5))
    assert many is not None
    assert many.told
    fewer = preference(*gains(few.needed // 3, 0.9, 0.5))
    assert fewer is not None
    assert not fewer.told


# --- the verdict -----------------------------------------------------------------------------------------------------


def test_a_file_that_loops_is_lost_whatever_else_was_found() -> None:
    fine = Answers(12, 96, (0, 1, 1), (1, 0), (0, 0))
    looping = dataclasses.replace(fine, loops=(0, 7, 6), new_loops=(7, 0))
    as_the_policy = dataclasses.replace(fine, loops=(7, 7, 7), new_loops=(1, 1))
    breaking = dataclasses.replace(fine, breaks=(6, 0))
    results = [judge_answers(one).result for one in (fine, looping, as_the_policy, breaking)]
    assert results == ["reported", "lost", "reported", "lost"]
    gates = [Finding(name, "passed", "") for name in ("adapter in the weights", "divergence")]
    assert verdict_of([], [*gates, judge_answers(looping)]) == "lost"
    assert verdict_of([], [*gates, judge_answers(fine)]) == "passed"


def test_what_comes_first_in_a_verdict() -> None:
    projection, divergence, lost = (
        Finding("adapter in the weights", "passed", ""),
        Finding("divergence", "passed", ""),
        Finding("preference kept", "lost", ""),
    )
    unsure = Finding("preference kept", "cannot be told", "")
    broken, skipped = Check("read-back", False, ""), Check("engine", None, "")
    assert verdict_of([broken], [projection, divergence, lost]) == "failed"
    assert verdict_of([skipped], [projection, divergence, lost]) == "lost"
    assert verdict_of([skipped], [projection, divergence, unsure]) == "passed", "the gates have passed"
    assert verdict_of([], [projection]) == "cannot be told"
    assert verdict_of([], [dataclasses.replace(projection, result="cannot be told"), divergence]) == "cannot be told"
