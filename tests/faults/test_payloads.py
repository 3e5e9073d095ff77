"""Code in files: pickles and Python planted wherever qdpo reads; none of it runs, and qdpo leaves no pickle behind."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.mutations import copy, files_of
from training.tiny import Tiny, TinyRun, train_tiny, train_until

from qdpo.cli.main import main
from qdpo.config import presets
from qdpo.config.resolve import resolve
from qdpo.errors import ConfigError, DataError
from qdpo.files import write_manifest
from qdpo.paths import cache_folder
from qdpo.run.folder import read_record
from qdpo.training.resume import find_checkpoint

FAST = ("train.max_steps=2", "train.save_every=1", "train.eval_every=2", "samples.count=0")


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.canary, "code has run")


def pickled(canary: Path) -> bytes:
    """A plain pickle."""
    return pickle.dumps({"model.norm.weight": Payload(canary)})


def zipped(canary: Path) -> bytes:
    """What torch.save writes: a pickle in a zip file."""
    stream = io.BytesIO()
    torch.save({"model.norm.weight": Payload(canary)}, stream)
    return stream.getvalue()


def code(canary: Path) -> str:
    """A module that runs when it is imported."""
    return (
        f"from pathlib import Path\nPath({str(canary)!r}).write_text('code has run')\n"
        "class Evil:\n    pass\nEvilConfig = EvilModel = EvilTokenizer = Evil\n"
    )


def test_the_payloads_would_run(tmp_path: Path) -> None:
    """Without this, a canary that never appears proves nothing."""
    for number, content in enumerate((pickled(tmp_path / "0"), zipped(tmp_path / "1"))):
        (tmp_path / "file").write_bytes(content)
        torch.load(tmp_path / "file", weights_only=False) if number else pickle.loads(content)
        assert (tmp_path / str(number)).read_text() == "code has run"
    exec(compile(code(tmp_path / "2"), "evil", "exec"), {})
    assert (tmp_path / "2").is_file()


@pytest.fixture(scope="module")
def stopped(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died at step 3, with checkpoints of steps 1 and 2; not to be changed."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train_until(tiny, folder, 3, *FAST, "train.max_steps=4", "packing.reference_cache=run")
    return folder


class World:
    """Copies of everything that a run reads, for a payload to be planted in."""

    def __init__(self, tiny: Tiny, stopped: Path, folder: Path) -> None:
        self.canary = folder / "canary"
        self.tiny, self.folder, self.stopped = tiny, folder, stopped
        self.model = copy(tiny.model, folder / "model")
        self.run = folder / "run"

    def train(self, *overrides: str) -> int:
        """A new run on the model's copy."""
        settings = [word for text in (*FAST, f"model.name={self.model}", *overrides) for word in ("--set", text)]
        return main(["train", "--preset", str(self.tiny.preset), "--run-dir", str(self.run), *settings])

    def resume(self) -> int:
        """The stopped run's copy goes on."""
        return main(["train", "--run-dir", str(self.run), "--resume"])

    def edit(self, path: Path, **values: Any) -> None:
        """Change a JSON file."""
        path.write_text(json.dumps(json.loads(path.read_text()) | values))


def beside(world: World) -> int:
    """Pickles of every kind beside good weights."""
    for name in ("pytorch_model.bin", "consolidated.00.pt", "weights.pkl", "model.ckpt", "training_args.bin"):
        (world.model / name).write_bytes(pickled(world.canary))
    return world.train()


def only_bin(world: World) -> int:
    """No weights but pickled ones."""
    (world.model / "model.safetensors").unlink()
    (world.model / "pytorch_model.bin").write_bytes(zipped(world.canary))
    return world.train()


def only_pt(world: World) -> int:
    """No weights but a .pt."""
    (world.model / "model.safetensors").unlink()
    (world.model / "model.pt").write_bytes(pickled(world.canary))
    return world.train()


def disguised_pickle(world: World) -> int:
    """A pickle that is called safetensors."""
    (world.model / "model.safetensors").write_bytes(pickled(world.canary))
    return world.train()


def disguised_zip(world: World) -> int:
    """A zip that is called safetensors."""
    (world.model / "model.safetensors").write_bytes(zipped(world.canary))
    return world.train()


def index_of_bins(world: World) -> int:
    """An index that leads to a pickled shard."""
    (world.model / "shard.bin").write_bytes(pickled(world.canary))
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "shard.bin"}}
    (world.model / "model.safetensors.index.json").write_text(json.dumps(index))
    return world.train()


def unknown_code(world: World) -> int:
    """An architecture that only its own code knows."""
    (world.model / "evil.py").write_text(code(world.canary))
    auto = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    world.edit(world.model / "config.json", model_type="evil", auto_map=auto)
    return world.train()


def known_code(world: World) -> int:
    """Code for an architecture that transformers has."""
    (world.model / "evil.py").write_text(code(world.canary))
    world.edit(world.model / "config.json", auto_map={"AutoModelForCausalLM": "evil.EvilModel"})
    return world.train()


def tokenizer_code(world: World) -> int:
    """A tokenizer that brings code."""
    (world.model / "evil.py").write_text(code(world.canary))
    auto = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    world.edit(world.model / "tokenizer_config.json", auto_map=auto, tokenizer_class="EvilTokenizer")
    return world.train()


def adapter_bin(world: World) -> int:
    """An adapter whose weights are pickled."""
    adapter = copy(world.stopped / "checkpoints" / "step-000002", world.folder / "adapter")
    (adapter / "manifest.json").unlink()
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(zipped(world.canary))
    return world.train(f"model.adapter={adapter}")


def adapter_beside(world: World) -> int:
    """An adapter with pickles beside its weights."""
    adapter = copy(world.stopped / "checkpoints" / "step-000002", world.folder / "adapter")
    (adapter / "manifest.json").unlink()
    for name in ("adapter_model.bin", "optimizer.pt", "training_args.bin"):
        (adapter / name).write_bytes(pickled(world.canary))
    return world.train(f"model.adapter={adapter}")


def checkpoint_beside(world: World) -> int:
    """transformers' own files in a checkpoint."""
    copy(world.stopped, world.run)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin"):
        (world.run / "checkpoints" / "step-000002" / name).write_bytes(pickled(world.canary))
    return world.resume()


def checkpoint_state(world: World) -> int:
    """A pickled optimizer state under the right name, with a manifest that fits."""
    copy(world.stopped, world.run)
    folder = world.run / "checkpoints" / "step-000002"
    (folder / "optimizer.safetensors").write_bytes(pickled(world.canary))
    write_manifest(folder)
    return world.resume()


def checkpoint_adapter(world: World) -> int:
    """The adapter as a pickle, in all checkpoints."""
    copy(world.stopped, world.run)
    for folder in (world.run / "checkpoints").iterdir():
        (folder / "adapter_model.safetensors").write_bytes(zipped(world.canary))
        write_manifest(folder)
    return world.resume()


def reference_table(world: World) -> int:
    """The run's reference table as a pickle."""
    copy(world.stopped, world.run)
    for path in (world.run / "reference").glob("*.safetensors"):
        path.write_bytes(pickled(world.canary))
    return world.resume()


def token_cache(world: World) -> int:
    """An object array, which NumPy unpickles, in the cache of tokenised data, with a manifest that fits."""
    for folder in cache_folder("data").iterdir():
        array = np.empty(1, dtype=object)
        array[0] = Payload(world.canary)
        np.save(folder / "records.npy", array, allow_pickle=True)
        write_manifest(folder)
    return world.train()


def data_pickle(world: World) -> int:
    """A pickle as data."""
    (world.folder / "rows.pkl").write_bytes(pickled(world.canary))
    return world.train(f"data.name={world.folder / 'rows.pkl'}")


def data_script(world: World) -> int:
    """A folder of data with a loading script, as datasets ran them once."""
    data = world.folder / "data"
    data.mkdir()
    (data / "data.py").write_text(code(world.canary))
    shutil.copy(world.tiny.train, data / "train.jsonl")
    return world.train(f"data.name={data}")


PAYLOADS: dict[Callable[[World], int], tuple[int | None, str]] = {
    beside: (0, "not opened: consolidated.00.pt, model.ckpt, pytorch_model.bin, training_args.bin, weights.pkl"),
    only_bin: (DataError.exit_code, "has no safetensors weights (there is pytorch_model.bin, which is not opened"),
    only_pt: (DataError.exit_code, "has no safetensors weights (there is model.pt, which is not opened"),
    disguised_pickle: (DataError.exit_code, "are broken: model.safetensors"),
    disguised_zip: (DataError.exit_code, "are broken: model.safetensors"),
    index_of_bins: (DataError.exit_code, "is not whole: shard.bin is missing"),
    unknown_code: (ConfigError.exit_code, "brings its own Python code (auto_map in its config.json), which is not run"),
    known_code: (0, "brings its own Python code, which is not run: transformers has this architecture"),
    tokenizer_code: (None, ""),
    adapter_bin: (DataError.exit_code, "has no safetensors weights (there is adapter_model.bin, which is not opened"),
    adapter_beside: (0, ""),
    checkpoint_beside: (0, "step-000002 is damaged and is passed over: optimizer.pt is not in the manifest"),
    checkpoint_state: (0, "step-000002 is damaged and is passed over: optimizer.safetensors cannot be read"),
    checkpoint_adapter: (DataError.exit_code, "none of the 2 checkpoints"),
    reference_table: (0, "is damaged and is computed again"),
    token_cache: (0, "cannot be read (Object arrays cannot be loaded when allow_pickle=False): tokenising again"),
    data_pickle: (None, ""),
    data_script: (None, ""),
}


@pytest.mark.parametrize("plant", PAYLOADS, ids=lambda plant: plant.__name__)
def test_no_payload_runs(
    plant: Callable[[World], int], tiny: Tiny, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tiny, stopped, tmp_path)
    code, said = PAYLOADS[plant]
    found = plant(world)
    err = capsys.readouterr().err
    assert not world.canary.exists()
    assert "internal error" not in err
    assert "Traceback" not in err
    assert said in err
    if code is not None:
        assert found == code, err


# ------------------------------------------------------------------------------------------------------ what is written


def pickles_in(folder: Path) -> list[str]:
    """Files that are pickles by their content, whatever they are called, alone or in a zip."""
    found = []
    for path in files_of(folder):
        parts = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts += [archive.read(name) for name in archive.namelist()]
        if any(is_pickle(part) for part in parts):
            found.append(path.relative_to(folder).as_posix())
    return found


def is_pickle(content: bytes) -> bool:
    """Whether the bytes read as a pickle from the first opcode to STOP."""
    # protocols 0 and 1 have no mark; text is none of them unless it parses up to its end
    if not content.startswith(b"\x80") and not content.endswith(b"."):
        return False
    try:
        for opcode, _, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return True
    except Exception:
        return False
    return False


def test_the_scan_finds_pickles(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(pickled(tmp_path / "x"))
    (tmp_path / "b.safetensors").write_bytes(zipped(tmp_path / "x"))
    (tmp_path / "c").write_bytes(pickle.dumps([1, 2], protocol=0))
    (tmp_path / "d").write_text("plain text.")
    assert pickles_in(tmp_path) == ["a", "b.safetensors", "c"]


def test_a_run_with_its_exports_holds_no_pickle(tiny: Tiny, tmp_path: Path) -> None:
    run: TinyRun = train_tiny(tiny, tmp_path / "run", *FAST)
    assert main(["merge-export", "--run", str(run.folder), "--format", "safetensors"]) == 0
    names = {path.name for path in files_of(run.folder)}
    assert {"optimizer.safetensors", "adapter_model.safetensors", "model.safetensors"} <= names
    assert pickles_in(run.folder) == []


# ---------------------------------------------------------------------------------------------------------- remote code


def test_no_preset_trusts_remote_code() -> None:
    for name in presets.names():
        assert resolve(name).config.model.trust_remote_code is False


def test_a_file_alone_cannot_allow_remote_code(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "evil.yaml"
    text = tiny.preset.read_text().replace("lora:", f"  revision: {'a' * 40}\n  trust_remote_code: true\nlora:")
    preset.write_text(text)
    assert main(["train", "--preset", str(preset), "--run-dir", str(tmp_path / "run")]) == ConfigError.exit_code
    assert "a file cannot allow that code of others is run" in capsys.readouterr().err


def test_remote_code_needs_a_commit(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--preset", str(tiny.preset), "--run-dir", str(tmp_path / "run"), "--trust-remote-code"]
    for revision in ("null", "main", "abcdef1", "A" * 40):
        assert main([*arguments, "--set", f"model.revision={revision}"]) == ConfigError.exit_code
        assert "needs model.revision to be a 40-hex commit" in capsys.readouterr().err
    # and a folder has no commit
    assert main([*arguments, "--set", f"model.revision={'a' * 40}"]) == ConfigError.exit_code
    assert "is a local folder" in capsys.readouterr().err


def test_remote_code_runs_where_it_was_asked_for(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub model in the cache, at a commit, with code of its own: only with the option is it run."""
    from qdpo.config.schema import ModelSection
    from qdpo.hardware import Device
    from qdpo.model.load import load_base

    revision = "c" * 40
    cache = tmp_path / "hub"
    snapshot = cache / "models--some--model" / "snapshots" / revision
    shutil.copytree(tiny.model, snapshot)
    (cache / "models--some--model" / "refs").mkdir()
    (cache / "models--some--model" / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    (snapshot / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((snapshot / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (snapshot / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto}))
    device = Device("cpu", "CPU", None, 1)
    with pytest.raises(ConfigError, match="which is not run"):
        load_base(ModelSection(name="some/model", revision=revision), device)
    base = load_base(ModelSection(name="some/model", revision=revision, trust_remote_code=True), device)
    assert type(base.model).__name__ == "OwnModel"


def test_find_checkpoint_reads_nothing_but_json_and_safetensors(stopped: Path) -> None:
    folder = find_checkpoint(stopped, read_record(stopped))
    assert folder is not None
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
