"""The NF4 base that is kept: the model that the shards give, to the bit, without reading them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from export import families, toys
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig

from qdpo.config.schema import ModelSection
from qdpo.errors import DataError
from qdpo.files import manifest_problems
from qdpo.hardware import Device
from qdpo.model import hashes, load, stored_base
from qdpo.model.load import Base, load_base, load_by_transformers
from qdpo.model.source import find

CPU = Device("cpu", "CPU", None, 1)
ROOT = Path(__file__).resolve().parents[2]
LONG_AGO = 1_600_000_000 * 10**9


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A toy Mistral of bfloat16."""
    return settle(toys.save_base(tmp_path / "base", toys.mistral(), torch.bfloat16))


def settle(folder: Path, when: int = LONG_AGO) -> Path:
    """As if the folder had lain there for years."""
    for path in folder.iterdir():
        os.utime(path, ns=(when, when))
    return folder


def section(folder: Path, **settings: Any) -> ModelSection:
    return ModelSection(**{"name": str(folder), "nf4_cache": "on", **settings})


def reference(config: ModelSection) -> Base:
    """The base as transformers' own loader has it, reading the shards."""
    source = find(config.name)
    dtype, reason = load.choose_dtype(config.dtype, CPU, source.weight_bytes)
    return load.frozen(load_by_transformers(source, config, dtype, CPU), source, dtype, reason)


def state_of(model: Any) -> dict[str, Any]:
    """Every number of a model and all that says how it is used."""
    found: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        found[name] = tensor.detach()
        found[f"{name} grad"] = tensor.requires_grad
        if (state := getattr(tensor, "quant_state", None)) is not None:
            for part in ("absmax", "code", "offset"):
                found[f"{name} {part}"] = getattr(state, part)
            found[f"{name} how"] = (state.shape, state.dtype, state.blocksize, state.quant_type, state.nested)
            found[f"{name} parameter"] = (tensor.blocksize, tensor.compress_statistics, tensor.quant_type)
            assert tensor.bnb_quantized
            assert model.get_submodule(name.removesuffix(".weight")).quant_state is state
            if state.nested:
                found |= {f"{name} 2 {part}": getattr(state.state2, part) for part in ("absmax", "code")}
                found[f"{name} 2 how"] = (state.state2.blocksize, state.state2.dtype)
    for name, module in model.named_modules():
        for key in ("compute_dtype", "quant_storage", "support_avx512bf16_for_cpu"):
            found[f"{name} {key}"] = getattr(module, key, None)
        found[f"{name} type"], found[f"{name} training"] = type(module), module.training
    config = model.config.to_dict()
    config.pop("_name_or_path", None)
    found["config"] = json.dumps(config, default=str, sort_keys=True)
    found["name"] = str(model.config.name_or_path)
    found["generation"] = str(model.generation_config)
    found |= {key: getattr(model, key, None) for key in ("is_loaded_in_4bit", "hf_device_map", "is_quantized")}
    return found


def check_equal(one: Any, other: Any) -> None:
    one, other = state_of(one), state_of(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[key].dtype, key
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_kept_base_is_the_one_from_the_shards(family: str, dtype: str, tmp_path: Path, cache: Path) -> None:
    folder = settle(toys.save_base(tmp_path / "base", families.config(family), torch.bfloat16))
    config = section(folder, dtype=dtype)
    wanted = reference(config)
    made = load_base(config, CPU)
    assert len(list((cache / "base").iterdir())) == 1
    again = load_base(config, CPU)
    in_memory = load_base(section(folder, dtype=dtype, nf4_cache="off"), CPU)
    for found in (made, again, in_memory):
        check_equal(found.model, wanted.model)
        assert (found.quantized, found.dtype, found.load_dtype) == (wanted.quantized, wanted.dtype, wanted.load_dtype)
    assert torch.equal(toys.logits(again.model), toys.logits(wanted.model))


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_every_pair_of_types(stored: torch.dtype, dtype: str, double_quant: bool, tmp_path: Path) -> None:
    folder = settle(toys.save_base(tmp_path / "base", toys.mistral(tie_word_embeddings=True), stored))
    config = section(folder, dtype=dtype, double_quant=double_quant)
    wanted = reference(config).model
    check_equal(load_base(config, CPU).model, wanted)
    check_equal(load_base(config, CPU).model, wanted)


def test_one_kept_base_serves_all_types_that_give_its_bits(base: Path, cache: Path) -> None:
    for dtype in ("bfloat16", "float32", "bfloat16"):
        load_base(section(base, dtype=dtype), CPU)
    assert len(list((cache / "base").iterdir())) == 1
    load_base(section(base, dtype="float16"), CPU)  # rounds differently
    load_base(section(base, double_quant=False), CPU)
    assert len(list((cache / "base").iterdir())) == 3


def scramble(folder: Path) -> None:
    """Other bytes in all weight files, but the same size, time and inode: whoever reads them gets something else."""
    for path in folder.glob("*.safetensors"):
        stat, content = path.stat(), bytearray(path.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        content[start:] = bytes(len(content) - start)
        with path.open("r+b") as stream:
            stream.write(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_shards_are_not_read_when_the_base_is_kept(base: Path) -> None:
    made = load_base(section(base), CPU)
    scramble(base)
    again = load_base(section(base), CPU)
    check_equal(again.model, made.model)
    assert again.weights_sha256 == made.weights_sha256
    # and without the store, the scrambled files are what is loaded
    other = load_base(section(base, nf4_cache="off"), CPU)
    with pytest.raises(AssertionError):
        check_equal(other.model, made.model)


def test_another_base_in_the_same_place_is_another_base(base: Path, tmp_path: Path, cache: Path) -> None:
    load_base(section(base), CPU)
    shutil.rmtree(base)
    settle(toys.save_base(base, toys.mistral(), torch.bfloat16, seed=5), LONG_AGO + 1)
    config = section(base)
    check_equal(load_base(config, CPU).model, reference(config).model)
    assert len(list((cache / "base").iterdir())) == 2


def test_a_copy_of_a_base_finds_what_was_kept_of_the_first(base: Path, tmp_path: Path, cache: Path) -> None:
    made = load_base(section(base), CPU)
    shutil.copytree(base, tmp_path / "elsewhere")
    (folder,) = (cache / "base").iterdir()
    before = folder.stat().st_ino
    again = load_base(section(tmp_path / "elsewhere"), CPU)
    assert torch.equal(toys.logits(again.model), toys.logits(made.model))
    assert [path.stat().st_ino for path in (cache / "base").iterdir()] == [before]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1]),
        lambda folder: (folder / "base.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: flip_a_bit(folder / "model.safetensors"),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
    ids=["cut", "record", "manifest", "bit", "gone"],
)
def test_a_damaged_one_is_made_anew(damage: Any, base: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = load_base(section(base), CPU)
    (folder,) = (cache / "base").iterdir()
    damage(folder)
    capsys.readouterr()
    check_equal(load_base(section(base), CPU).model, made.model)
    told = " ".join(capsys.readouterr().err.split())
    assert "is damaged (" in told
    assert "rounding the base anew" in told
    assert manifest_problems(folder) == []
    check_equal(load_base(section(base), CPU).model, made.model)
    assert "damaged" not in capsys.readouterr().err


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def test_doctor_finds_a_damaged_one_by_its_bits(base: Path, cache: Path) -> None:
    from qdpo.cli.doctor import _kept_bases

    assert _kept_bases() == []
    load_base(section(base), CPU)
    (folder,) = (cache / "base").iterdir()
    assert [(kept["folder"], kept["problem"]) for kept in _kept_bases()] == [(str(folder), None)]
    stat = (folder / "model.safetensors").stat()
    flip_a_bit(folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert _kept_bases()[0]["problem"] == "model.safetensors does not match its SHA-256"


def test_what_a_killed_process_left_is_swept(base: Path, cache: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = cache / "base" / f".staging-arrival-{dead.pid}"
    own = cache / "base" / f".staging-.staging-arrival-{os.getppid()}-{os.getppid()}"
    for folder in (left, own):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    load_base(section(base), CPU)
    assert not left.exists()
    assert own.exists()  # of a process that runs
    assert len([path for path in (cache / "base").iterdir() if not path.name.startswith(".")]) == 1


def test_two_processes_make_the_same_one(base: Path, cache: Path) -> None:
    code = (
        "import sys; from qdpo.config.schema import ModelSection; from qdpo.hardware import Device\n"
        "from qdpo.model.load import load_base\n"
        "sys.stdin.readline()\n"
        "load_base(ModelSection(name=sys.argv[1], nf4_cache='on'), Device('cpu', 'CPU', None, 1))"
    )
    command = [sys.executable, "-c", code, str(base)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, env=env) for _ in range(2)]
    for process in running:
        process.communicate(b"go\n", timeout=300)
    assert [process.returncode for process in running] == [0, 0]
    (folder,) = (cache / "base").iterdir()
    assert manifest_problems(folder) == []


def test_one_that_another_process_has_made_meanwhile_is_taken(
    base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_base(section(base), CPU)
    (folder,) = (cache / "base").iterdir()
    before = (folder / "model.safetensors").stat().st_ino
    monkeypatch.setattr(stored_base, "known_weights_sha256", lambda source: None)
    monkeypatch.setattr(stored_base, "_may_be_there", lambda plan: False)
    config = section(base)
    check_equal(load_base(config, CPU).model, reference(config).model)
    assert list((cache / "base").iterdir()) == [folder]
    assert (folder / "model.safetensors").stat().st_ino == before


def test_the_least_recently_used_goes(
    base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stored_base, "KEPT", 2)
    load_base(section(base), CPU)
    (first,) = (cache / "base").iterdir()
    load_base(section(base, double_quant=False), CPU)
    (second,) = set((cache / "base").iterdir()) - {first}
    for folder, when in ((first, LONG_AGO + 2), (second, LONG_AGO + 1)):
        os.utime(folder, ns=(when, when))
    load_base(section(base), CPU)  # uses the first
    load_base(section(base, dtype="float16"), CPU)
    left = set((cache / "base").iterdir())
    assert first in left
    assert second not in left
    assert "was not used for longest and is removed" in " ".join(capsys.readouterr().err.split())


def test_auto_keeps_large_bases_only(base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_base(section(base, nf4_cache="auto"), CPU)
    assert not (cache / "base").exists()
    monkeypatch.setattr(stored_base, "SMALLEST", 1000)
    load_base(section(base, nf4_cache="off"), CPU)
    assert not (cache / "base").exists()
    load_base(section(base, nf4_cache="auto"), CPU)
    assert len(list((cache / "base").iterdir())) == 1


@pytest.mark.parametrize("setting", ["auto", "on"])
def test_without_room_nothing_is_written_and_it_is_said(
    setting: str, base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stored_base, "SMALLEST", 1000)
    monkeypatch.setattr(stored_base, "free_bytes", lambda path: 1000)
    config = section(base, nf4_cache=setting)
    check_equal(load_base(config, CPU).model, reference(config).model)
    assert not (cache / "base").exists()
    assert "is not kept for the next start" in " ".join(capsys.readouterr().err.split())


def test_a_full_disk_is_no_reason_to_stop(
    base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored_base, "write_folder", full)
    config = section(base)
    check_equal(load_base(config, CPU).model, reference(config).model)
    assert not list((cache / "base").glob("*"))
    assert "is not kept for the next start" in " ".join(capsys.readouterr().err.split())


def test_where_it_lies_and_how_large_it_is_is_said(base: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_base(section(base), CPU)
    told = "".join(capsys.readouterr().err.split())
    assert f"theNF4baseiskeptin{cache / 'base'}/" in told
    assert "--setmodel.nf4_cache=off" in told


def test_other_files_of_the_folder_count_in_the_hash_and_are_not_loaded(base: Path) -> None:
    save_file({"other": torch.zeros(3)}, base / "consolidated.safetensors")
    weights = load_file(base / "model.safetensors")
    half = len(weights) // 2
    parts = [dict(list(weights.items())[:half]), dict(list(weights.items())[half:])]
    index = {}
    for number, part in enumerate(parts, 1):
        save_file(part, base / f"model-0000{number}-of-00002.safetensors", metadata={"format": "pt"})
        index |= dict.fromkeys(part, f"model-0000{number}-of-00002.safetensors")
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    settle(base)
    config = section(base)
    made = load_base(config, CPU)
    check_equal(made.model, reference(config).model)
    assert made.weights_sha256 == hashes_of(base)
    check_equal(load_base(section(base, nf4_cache="off"), CPU).model, made.model)


def hashes_of(folder: Path) -> str:
    """The hash of a base's files, computed from scratch."""
    import hashlib

    from qdpo.files import digest_of

    parts = []
    for path in sorted(folder.glob("*.safetensors")):
        parts += [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
    return digest_of(parts)


@pytest.mark.parametrize("setting", ["on", "off"])
def test_the_bytes_that_are_hashed_are_the_bytes_that_are_rounded(
    setting: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        hashes, "sha256_file", lambda path, advance: pytest.fail(f"{path} was hashed in a pass of its own")
    )
    made = load_base(section(base, nf4_cache=setting), CPU)
    assert made.weights_sha256 == hashes_of(base)


def test_models_that_transformers_rearranges_are_left_to_it(tmp_path: Path, cache: Path) -> None:
    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        vocab_size=toys.VOCABULARY,
    )
    folder = settle(toys.save_base(tmp_path / "mixtral", config))
    loaded = load_base(section(folder, in_16_bits=["experts"]), CPU)
    assert loaded.quantized
    assert not (cache / "base").exists()


def test_a_base_that_is_not_finite_is_not_kept(base: Path, cache: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = section(settle(base))
    loaded = load_base(config, CPU)
    assert not list((cache / "base").glob("*"))
    assert loaded.quantized == reference(config).quantized
    assert loaded.weights_sha256 is None


def test_a_hub_file_that_is_not_what_its_name_says_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    from qdpo.model.source import Source

    blob = tmp_path / ("ab" * 32)
    (base / "model.safetensors").rename(blob)
    (base / "model.safetensors").symlink_to(blob)
    monkeypatch.setattr(load, "find", lambda *args, **kwargs: Source("hub/name", base, "c" * 40))
    with pytest.raises(DataError, match="does not match the SHA-256 that the hub gave it"):
        load_base(section(base), CPU)
    assert not list((cache / "base").glob("*"))


def test_a_file_with_overlapping_tensors_is_refused(base: Path) -> None:
    path = base / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = sorted(name for name in header if name.endswith("layernorm.weight"))
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]
    head = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(content[:8] + head[:length] + content[8 + length :])
    with pytest.raises(DataError):
        load_base(section(base), CPU)
