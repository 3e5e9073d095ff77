"""Training on a GGUF type's grid: the file is the model that was trained, whatever happened in between."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from training.tiny import Tiny, TinyRun, train_tiny, train_until

from qdpo.errors import ConfigError, UsageError
from qdpo.evaluation.subject import load
from qdpo.export.formats import FORMATS, Request, targets_of
from qdpo.export.gguf.encode import decode
from qdpo.export.source import load_run
from qdpo.export.verify.projection import Projection
from qdpo.files import read_json
from qdpo.model.grid_file import GRIDS
from qdpo.run.folder import reopen

GRID = "train.grid=q4_0"


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return train_tiny(tiny, tmp_path_factory.mktemp("grid") / "run", GRID, "train.max_steps=6")


def test_the_file_holds_the_trained_values_to_the_bit(run: TinyRun, tmp_path: Path) -> None:
    trained = load_run(run.folder)
    request = Request(trained, tmp_path / "gguf", quants=("q4_0",))
    FORMATS["gguf"].write(request)
    (path,) = (tmp_path / "gguf").glob("*.gguf")
    model, bare = trained.merged("trained"), trained.base_as_trained()
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    down = "model.layers.0.mlp.down_proj.weight"  # no rows change places in it
    found = stored["blk.0.ffn_down.weight"]
    assert torch.equal(decode(found.data, found.tensor_type, model.shape(down)), model.read(down))
    assert not torch.equal(model.read(down), bare.read(down)), "a few weights have another level"

    record = read_json(tmp_path / "gguf" / "export.json")
    assert record["trained_on_grid"] == "q4_0"
    (target,) = targets_of(tmp_path / "gguf", record, trained)
    twin = Request(trained.without_adapter(), tmp_path / "bare", quants=("q4_0",))
    FORMATS["gguf"].write(twin)
    (beside,) = targets_of(tmp_path / "bare", read_json(tmp_path / "bare" / "export.json"), twin.run)
    projection = Projection()
    checks = target.read_back(model, beside, projection)
    assert [check.passed for check in checks] == [True, True]
    figures = projection.record()
    assert figures is not None
    assert figures["low"] == pytest.approx(1, abs=1e-6)
    assert figures["high"] == pytest.approx(1, abs=1e-6)


def test_another_type_of_file_is_rounded_anew(run: TinyRun, tmp_path: Path) -> None:
    FORMATS["gguf"].write(Request(load_run(run.folder), tmp_path / "gguf", quants=("q8_0", "q4_0")))
    assert {path.name.rpartition("-")[2] for path in (tmp_path / "gguf").glob("*.gguf")} == {"Q8_0.gguf", "Q4_0.gguf"}


def test_an_evaluation_sees_what_the_training_saw(run: TinyRun) -> None:
    model = load_run(run.folder).merged("trained")
    subject = load(reopen(run.folder).config, run.folder / "adapter")
    layer = subject.engine.model.model.layers[0].mlp.down_proj
    x = torch.randn(3, layer.get_base_layer().in_features)
    weight = model.read("model.layers.0.mlp.down_proj.weight")
    with torch.no_grad():
        seen = layer(x.to(subject.engine.model.dtype)).float()
    torch.testing.assert_close(seen, x @ weight.T, atol=1e-2, rtol=1e-2)


def test_a_resumed_run_ends_with_the_same_adapter_and_grids(run: TinyRun, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_until(tiny, folder, 4, GRID, "train.max_steps=6", "train.save_every=3")
    resumed = train_tiny(tiny, folder, GRID, "train.max_steps=6", "train.save_every=3", resume=True)
    assert resumed.sha256 == run.sha256
    assert (folder / "adapter" / GRIDS).read_bytes() == (run.folder / "adapter" / GRIDS).read_bytes()


def test_a_resume_with_other_grids_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_until(tiny, folder, 4, GRID, "train.max_steps=6", "train.save_every=3")
    with pytest.raises(ConfigError, match=r"train\.grid"):
        train_tiny(tiny, folder, "train.grid=q5_0", "train.max_steps=6", "train.save_every=3", resume=True)
    path = folder / GRIDS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="grids_sha256"):
        train_tiny(tiny, folder, GRID, "train.max_steps=6", "train.save_every=3", resume=True)


def test_the_adapter_alone_is_not_the_trained_model(run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="trained on the grid of q4_0"):
        FORMATS["gguf-lora"].write(Request(load_run(run.folder), tmp_path / "lora"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.grid=q4"], "no GGUF type whose levels are evenly spaced"),
        (["train.grid=iq4_nl"], "evenly spaced"),
        (["train.grid=bf16"], "evenly spaced"),
        ([GRID, "engine=trl"], "train.grid needs"),
        ([GRID, "packing.fused_lora=false"], "train.grid needs"),
        ([GRID, "train.disable_dropout=false", "lora.lora_dropout=0.1"], "train.grid needs"),
    ],
)
def test_what_cannot_be_trained_on_a_grid_is_refused(
    tiny: Tiny, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_tiny(tiny, tmp_path / "run", *overrides)
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_record_says_the_grid(run: TinyRun) -> None:
    record = json.loads((run.folder / "run.json").read_text())
    assert record["adapter"]["grids_sha256"]
    assert any(check["name"] == "grid" for check in record["checks"])
