"""What became of the adapter's change: adapters that were halved, turned round, dropped or exchanged are told apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export import families, toys
from safetensors.torch import load_file, save_file

from qdpo.export.folder import write_safetensors
from qdpo.export.formats import FORMATS, Request, targets_of
from qdpo.export.source import MergeBase, load_run
from qdpo.export.verify.projection import Projection, read_both
from qdpo.files import write_manifest

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small adapter, as DPO's are, on an NF4 base."""
    folder = tmp_path_factory.mktemp("projection")
    base = toys.save_base(folder / "base", families.config("llama", num_hidden_layers=2))
    return toys.save_run(folder / "run", base, toys.add_adapter(toys.load_4bit(base), size=0.005))


def with_other_adapter(run: Path, folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a run, the adapter's tensors changed."""
    other = Path(shutil.copytree(run, folder))
    weights = load_file(other / "adapter" / WEIGHTS)
    save_file({name: change(name, value).contiguous() for name, value in weights.items()}, other / "adapter" / WEIGHTS)
    return other


def another(name: str, value: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(len(name) + value.numel())
    return torch.randn_like(value) * value.std()


CONTROLS: dict[str, tuple[Callable[[str, torch.Tensor], torch.Tensor], float, float]] = {
    "itself": (lambda name, value: value, 1.0, 0.03),
    "halved": (lambda name, value: value / 2 if "lora_B" in name else value, 0.5, 0.03),
    "reversed": (lambda name, value: -value if "lora_B" in name else value, -1.0, 0.03),
    "another run's": (another, 0.0, 0.1),
    "dropped": (lambda name, value: torch.zeros_like(value), 0.0, 0.0),
}


def kept_of(run: Path, made_from: Path, folder: Path, format: str, quant: str, merge_base: MergeBase) -> Projection:
    """What an export of one run has kept of another run's adapter."""
    quants = (quant,) if quant else ()
    out = FORMATS[format].write(Request(load_run(made_from), folder / "out", merge_base, quants=quants))
    found = load_run(run)
    (target,) = targets_of(out, json.loads((out / "export.json").read_text()), found)
    scratch, projection = folder / "scratch", Projection()
    scratch.mkdir()
    checks = target.read_back(found.merged(merge_base), target.twin(scratch), projection)
    if quant == "q4_k_m":
        assert checks[0].passed, "a tensor's error is that of its type, whatever became of the adapter"
    return projection


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(
    ("format", "quant", "merge_base"),
    [("gguf", "q4_k_m", "original"), ("gguf", "q8_0", "trained"), ("gguf-lora", "", "trained")],
)
def test_other_adapters_are_told_apart(
    run: Path, tmp_path: Path, format: str, quant: str, merge_base: MergeBase, control: str
) -> None:
    change, expected, within = CONTROLS[control]
    made_from = with_other_adapter(run, tmp_path / "run", change)
    found = kept_of(run, made_from, tmp_path, format, quant, merge_base).record()
    assert found is not None
    assert found["value"] == pytest.approx(expected, abs=within)
    assert found["low"] <= found["value"] <= found["high"]
    assert found["tensors"] == 14


def test_a_rounded_base_that_is_rounded_once_more_loses_the_adapter(run: Path, tmp_path: Path) -> None:
    found = kept_of(run, run, tmp_path, "gguf", "q4_k_m", "trained").record()
    assert found is not None
    assert 0.6 < found["value"] < 0.85
    assert len(found["worst"]) == 5
    assert found["worst"][0]["value"] < found["high"]


def test_the_layer_that_lost_most_is_named(run: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj"
    made_from = with_other_adapter(
        run, tmp_path / "run", lambda key, value: value * (0.2 if name in key and "lora_B" in key else 1)
    )
    found = kept_of(run, made_from, tmp_path, "gguf", "q8_0", "trained").record()
    assert found is not None
    assert found["worst"][0]["name"] == f"{name}.weight"
    assert found["worst"][0]["value"] == pytest.approx(0.2, abs=0.05)
    assert found["worst"][1]["value"] > 0.9


class InputsOnTheFirstColumns:
    """Moments of layers whose inputs are zero but for the first columns."""

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def of(self, name: str) -> InputsOnTheFirstColumns | None:
        return None if "q_proj" in name else self

    def inner(self, x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x[:, : self.columns] * y[:, : self.columns]).sum(dtype=torch.float64))


def test_the_metric_is_that_of_the_inputs() -> None:
    trained = torch.ones(6, 8)
    change = torch.cat([torch.ones(6, 4), torch.zeros(6, 4)], 1)
    plain, inputs = Projection(), Projection(InputsOnTheFirstColumns(4))
    for projection in (plain, inputs):
        projection.add("up_proj.weight", change, trained, trained)
        projection.add("up_proj.bias", torch.ones(6), torch.ones(6), 2 * torch.ones(6))
    found = plain.record(), inputs.record()
    assert found[0] is not None
    assert found[1] is not None
    assert found[0]["value"] == pytest.approx((0.5 + 0.25) / (1 + 0.25)), "the bias changes its output by half"
    assert found[1]["value"] == 1, "what is lost lies where no input is"
    assert (found[0]["metric"], found[1]["metric"]) == ("plain", "inputs")
    inputs.add("q_proj.weight", change, trained, trained)
    again = inputs.record()
    assert again is not None
    assert (again["left_out"], again["tensors"]) == (1, 2)


def test_pieces_of_rows_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trained, noise = torch.randn(50, 16), torch.randn(50, 16)
    whole, pieces = Projection(), Projection()
    whole.add("a.weight", trained + noise, trained, trained)
    monkeypatch.setattr("qdpo.export.verify.projection.CHUNK", 48)
    pieces.add("a.weight", trained + noise, trained, trained)
    assert pieces.products["a.weight"] == pytest.approx(whole.products["a.weight"])


def test_an_adapter_that_changes_nothing_has_no_projection(run: Path, tmp_path: Path) -> None:
    nothing = with_other_adapter(run, tmp_path / "run", lambda name, value: torch.zeros_like(value))
    write_manifest(nothing / "adapter")
    assert kept_of(nothing, nothing, tmp_path, "gguf", "q8_0", "trained").record() is None


def test_a_merged_tensor_and_its_base_are_read_at_once(run: Path) -> None:
    found = load_run(run)
    model, bare = found.merged("trained"), found.without_adapter().merged("trained")
    changed = "model.layers.0.mlp.up_proj.weight"
    merged, base = read_both(model, bare, changed)
    assert torch.equal(merged, model.read(changed))
    assert base is not None
    assert torch.equal(base, found.base_as_trained().read(changed))
    assert read_both(model, bare, "model.norm.weight")[1] is None


def test_tensors_that_were_trained_whole_are_among_them(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    peft = toys.add_adapter(toys.load_plain(base), modules_to_save=["embed_tokens", "lm_head"])
    run = load_run(toys.save_run(tmp_path / "run", base, peft))
    out = write_safetensors(Request(run, tmp_path / "out", "original"))
    (target,) = targets_of(out, json.loads((out / "export.json").read_text()), run)
    projection = Projection()
    target.read_back(run.merged("original"), target.twin(tmp_path), projection)
    assert {"model.embed_tokens.weight", "lm_head.weight"} < projection.products.keys(), "trained whole"
    found = projection.record()
    assert found is not None
    assert found["value"] == 1
