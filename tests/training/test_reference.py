"""Reference log-probabilities as data: what is reused, what is not, and that an interruption changes no bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.toys import build, make_pairs, separate_logps
from peft import LoraConfig, get_peft_model

from qdpo.config.schema import DataSection, ModelSection, PackingSection, RunConfig
from qdpo.data.pairs import TokenPair
from qdpo.engine import attention
from qdpo.engine.engine import Engine
from qdpo.engine.logps import PackScores
from qdpo.training import reference
from qdpo.training.out_of_memory import Budgets
from qdpo.training.reference import Store, pair_key, reference_logps

IDENTITY = {"weights": "abc", "dtype": "float32"}
CONFIG = RunConfig(
    name="toy",
    model=ModelSection(name="toy"),
    data=DataSection(name="toy"),
    packing=PackingSection(tokens_without_grad=60),
)
PAIRS = make_pairs(1) + make_pairs(2) + make_pairs(3)


class CountingEngine(Engine):
    """Counts the pairs that it scores, and stops (as by a kill) after a number of passes."""

    def score(self, pairs: Sequence[TokenPair], indices: Sequence[int]) -> PackScores:
        """Score and count."""
        log = LOG
        if log["left"] == 0:
            raise KeyboardInterrupt
        log["left"] -= 1
        log["pairs"] += len(pairs)
        return super().score(pairs, indices)


LOG = {"pairs": 0, "left": -1}


@pytest.fixture
def policy() -> Any:
    LOG.update(pairs=0, left=-1)
    model = build("llama", torch.float32)
    attention.install(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    return wrapped


def look_up(policy: Any, tmp_path: Path, pairs: list[TokenPair] = PAIRS, wanted: Any = None, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "budgets": Budgets(CONFIG),
        "start": False,
        "identity": IDENTITY,
        "pin": tmp_path / "run",
        "shared": tmp_path / "cache",
    }
    engine = CountingEngine(policy.get_base_model(), torch.device("cpu"))
    wanted = list(range(len(pairs))) if wanted is None else wanted
    return reference_logps(engine, policy, pairs, wanted, **{**settings, **changes})


def test_the_reference_is_the_base_or_the_starting_adapter(policy: Any, tmp_path: Path) -> None:
    base = look_up(policy, tmp_path)
    start = look_up(policy, tmp_path, start=True, identity={**IDENTITY, "adapter": "x"})
    with policy.disable_adapter():
        expected = separate_logps(policy.get_base_model(), PAIRS).view(2, -1).T
    torch.testing.assert_close(base.table, expected, rtol=1e-5, atol=1e-4)
    adapted = separate_logps(policy.get_base_model(), PAIRS).detach().view(2, -1).T
    torch.testing.assert_close(start.table, adapted, rtol=1e-5, atol=1e-4)
    assert base.computed == start.computed == len(PAIRS)


def test_another_run_reuses_every_value_and_checks_sixteen(policy: Any, tmp_path: Path) -> None:
    first = look_up(policy, tmp_path)
    LOG["pairs"] = 0
    second = look_up(policy, tmp_path, pin=tmp_path / "other")
    assert torch.equal(second.table, first.table)
    assert (second.computed, second.reused, second.checked) == (0, len(PAIRS), 16)
    assert second.gap < 1e-3
    assert LOG["pairs"] == 16


def test_the_run_s_own_table_needs_no_pass_at_all(policy: Any, tmp_path: Path) -> None:
    first = look_up(policy, tmp_path)
    LOG["pairs"] = 0
    assert torch.equal(look_up(policy, tmp_path).table, first.table)
    assert LOG["pairs"] == 0


def test_subsets_and_supersets_share_values(policy: Any, tmp_path: Path) -> None:
    part = look_up(policy, tmp_path, pairs=PAIRS[:7], pin=tmp_path / "a")
    whole = look_up(policy, tmp_path, pin=tmp_path / "b")
    assert torch.equal(whole.table[:7], part.table)
    assert (whole.computed, whole.reused) == (len(PAIRS) - 7, 7)


def test_only_what_is_wanted_is_computed(policy: Any, tmp_path: Path) -> None:
    result = look_up(policy, tmp_path, wanted=[4, 1])
    assert torch.isfinite(result.table).all(1).nonzero()[:, 0].tolist() == [1, 4]
    assert LOG["pairs"] == 2


@pytest.mark.parametrize("change", [{"weights": "other"}, {"dtype": "bfloat16"}, {"attention": "unshared"}])
def test_whatever_decides_the_values_decides_the_store(policy: Any, tmp_path: Path, change: dict[str, str]) -> None:
    look_up(policy, tmp_path)
    again = look_up(policy, tmp_path, identity={**IDENTITY, **change}, pin=tmp_path / "other")
    assert again.reused == 0


@pytest.mark.parametrize("passes", [0, 1, 3])
@pytest.mark.parametrize("share", [True, False])
def test_an_interrupted_pass_gives_the_same_bits(policy: Any, tmp_path: Path, passes: int, share: bool) -> None:
    whole = look_up(policy, tmp_path / "whole")
    folder = tmp_path / "interrupted"
    shared = folder / "cache" if share else None
    LOG["left"] = passes
    with pytest.raises(KeyboardInterrupt):
        look_up(policy, folder, shared=shared)
    LOG["left"] = -1
    resumed = look_up(policy, folder, shared=shared)
    assert torch.equal(resumed.table, whole.table)
    assert (resumed.reused > 0) == (passes > 0)


def test_a_longer_run_extends_the_shorter_one_s_passes(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "BLOCK", 4)
    short = look_up(policy, tmp_path / "short", wanted=[7, 2, 9, 0, 5, 1, 3, 11])
    long = look_up(policy, tmp_path / "long", wanted=[7, 2, 9, 0, 5, 1, 3, 11, 4, 6, 8])
    known = torch.isfinite(short.table).all(1)
    assert int(known.sum()) == 8
    assert torch.equal(long.table[known], short.table[known])


def test_a_torn_line_costs_one_pair(policy: Any, tmp_path: Path) -> None:
    first = look_up(policy, tmp_path)
    (path,) = (tmp_path / "cache").glob("*/logps.jsonl")
    path.write_bytes(path.read_bytes()[:-9])
    second = look_up(policy, tmp_path, pin=tmp_path / "second")
    assert second.computed == 1
    torch.testing.assert_close(second.table, first.table, rtol=1e-5, atol=1e-4)
    third = look_up(policy, tmp_path, pin=tmp_path / "third")
    assert third.computed == 0
    assert torch.equal(third.table, second.table)


def test_values_that_are_wrong_are_found_and_computed_anew(
    policy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = look_up(policy, tmp_path)
    (path,) = (tmp_path / "cache").glob("*/logps.jsonl")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**entry, "chosen": entry["chosen"] + 1}) + "\n" for entry in entries))
    second = look_up(policy, tmp_path, pin=tmp_path / "second")
    assert torch.equal(second.table, first.table)
    assert second.computed == len(PAIRS)
    assert path.with_name("rejected-logps.jsonl").is_file()


def test_appending_never_rewrites(tmp_path: Path) -> None:
    store = Store.open(tmp_path, IDENTITY)
    store.add({"a": (-1.5, -2.25)})
    before = store.path.read_bytes()
    store.add({"a": (9.0, 9.0), "b": (-0.1, -1e-30)})
    assert store.path.read_bytes().startswith(before)
    assert Store.open(tmp_path, IDENTITY).values == {"a": (-1.5, -2.25), "b": (-0.1, -1e-30)}


def test_the_key_tells_prompt_from_completion() -> None:
    keys = {pair_key(TokenPair(0, *ids)) for ids in (([1, 2], [3], [4]), ([1], [2, 3], [4]), ([1, 2], [4], [3]))}
    assert len(keys) == 3
    assert pair_key(TokenPair(0, [1], [2], [3])) == pair_key(TokenPair(9, [1], [2], [3]))


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", None], ids=["empty", "text", "cut"])
def test_a_damaged_table_of_the_run_is_computed_anew(damage: bytes | None, policy: Any, tmp_path: Path) -> None:
    first = look_up(policy, tmp_path)
    (path,) = (tmp_path / "run").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-8] if damage is None else damage)
    assert torch.equal(look_up(policy, tmp_path).table, first.table)
