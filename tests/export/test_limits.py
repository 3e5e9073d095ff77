"""The limits of verification are settings of the preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from export import toys

from qdpo.config.resolve import resolve
from qdpo.config.schema import MAX_KL, PRECISIONS, VerifySection
from qdpo.errors import ConfigError
from qdpo.export.formats import FORMATS
from qdpo.export.gguf.kinds import KINDS
from qdpo.export.source import load_run
from qdpo.export.verify.parity import judge, limits_of

ROW: dict[str, Any] = {"engine": "here", "accuracy": 1.0, "margin_kept": 0.95, "kl": 3e-4, "top1": 0.99}


def test_every_precision_that_can_be_exported_can_have_a_limit() -> None:
    assert set(KINDS) <= set(PRECISIONS)
    assert {"float32", "float16", "bfloat16", "awq"} <= set(PRECISIONS)
    assert "awq" in FORMATS
    assert set(MAX_KL) <= set(PRECISIONS)


def test_the_quickstart_asks_for_what_its_4_bits_are_known_to_keep() -> None:
    assert resolve("quickstart").config.verify.min_margin_kept == {"q4_k_m": 0.9, "awq": 0.9}
    assert resolve("garrulus-a40").config.verify.min_margin_kept == {}
    assert resolve("garrulus-a40").config.verify.max_kl == MAX_KL


def test_a_limit_is_laid_over_the_defaults() -> None:
    section = resolve("quickstart", ["verify.max_kl.q8_0=0.5", "verify.min_margin_kept.q4_0=0.8"]).config.verify
    assert section.max_kl == {**MAX_KL, "q8_0": 0.5}
    assert section.min_margin_kept == {"q4_k_m": 0.9, "awq": 0.9, "q4_0": 0.8}


@pytest.mark.parametrize("setting", ["verify.max_kl.q9=1", "verify.max_kl.f16=-1", "verify.min_margin_kept.f16=much"])
def test_a_limit_that_means_nothing_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0].split(".")[1]):
        resolve("quickstart", [setting])


@pytest.mark.parametrize(
    ("kind", "row", "passed", "told"),
    [
        ("f16", {"kl": 9e-5}, True, "KL 9e-05"),
        ("f16", {"kl": 1.1e-4}, False, "the KL limit of f16 is 0.0001"),
        ("f16", {"kl": float("nan")}, False, "the KL limit"),
        ("awq", {"margin_kept": 0.901}, True, "90.1% of the margin kept"),
        ("awq", {"margin_kept": 0.899}, False, "90% of the margin must be kept"),
        ("awq", {"margin_kept": None}, True, "no trained margin"),
        ("q5_0", {"margin_kept": 0.1, "kl": 3.0}, True, "no limit for this precision"),
    ],
)
def test_rows_are_held_to_the_limits(kind: str, row: dict[str, Any], passed: bool, told: str) -> None:
    check = judge(kind, resolve("quickstart").config.verify, {**ROW, **row}, "the trained model")
    assert check.passed is passed
    assert told in check.detail


def test_limits_come_from_the_run(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    folder = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base)))
    assert limits_of(load_run(folder)) == VerifySection(), "without a configuration, the defaults"
    toys.add_data(folder, base)
    config = folder / "config.yaml"
    config.write_text(config.read_text()[:-1] + ', "verify": {"pairs": 7, "max_kl": {"q4_0": 0.25}}}')
    limits = limits_of(load_run(folder))
    assert limits.pairs == 7
    assert limits.max_kl == {**MAX_KL, "q4_0": 0.25}
