"""The merged model is the trained policy, and `original` is PEFT's merge to the bit."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from export import toys
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qdpo.errors import InputMissingError
from qdpo.export.folder import write_safetensors
from qdpo.export.formats import Request
from qdpo.export.gguf.format import write_gguf
from qdpo.export.gguf.lora import write_gguf_lora
from qdpo.export.source import load_run
from qdpo.model import rounding
from qdpo.model.tensors import TensorFiles


def merge(run: Path, out: Path, merge_base: str = "trained", dtype: str | None = None) -> Path:
    return write_safetensors(Request(load_run(run), out, merge_base, dtype))


def test_trained_merge_is_the_trained_policy_and_merging_into_4_bit_is_not(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    policy = toys.add_adapter(toys.load_4bit(base), size=0.005)
    run = toys.save_run(tmp_path / "run", base, policy)
    trained = toys.logits(policy)
    with policy.disable_adapter():
        effect = toys.divergence(trained, toys.logits(policy))

    exact = toys.divergence(trained, toys.logits(toys.load_plain(merge(run, tmp_path / "f32"))))
    half = toys.divergence(trained, toys.logits(toys.load_plain(merge(run, tmp_path / "bf16", dtype="bfloat16"))))
    original = toys.divergence(trained, toys.logits(toys.load_plain(merge(run, tmp_path / "o", "original"))))
    into_4bit = toys.divergence(trained, toys.logits(policy.merge_and_unload()))

    assert exact < 1e-9
    assert half < 1e-3
    assert effect > 1e-4, "the adapter must do something, or this test shows nothing"
    assert original > 20 * half, "the original base differs by the NF4 error"
    assert into_4bit > 0.3 * effect, "requantising loses most of the adapter: the reason it is not offered"


@pytest.mark.parametrize("piece", [rounding.PIECE, 1 << 10])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("load_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_base_as_trained_is_bitsandbytes_own_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load_dtype: torch.dtype, double_quant: bool, piece: int
) -> None:
    monkeypatch.setattr(rounding, "PIECE", piece)
    base = toys.save_base(tmp_path / "base", toys.llama(), dtype=torch.bfloat16)
    model = toys.load_4bit(base, load_dtype, double_quant)
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(copy.deepcopy(model)), load_dtype, double_quant)
    merged = load_run(run).merged("trained")
    merged._adapter = None  # the base alone
    dequantised = model.dequantize().state_dict()
    for name in merged.names:
        assert torch.equal(merged.read(name), dequantised[name].float()), name


KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj", "o_proj"]},
    "bias_all": {"bias": "all"},
    "bias_lora_only": {"bias": "lora_only", "target_modules": ["q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head", "embed_tokens"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_original_merge_is_pefts_to_the_bit(tmp_path: Path, kind: str) -> None:
    base = toys.save_base(tmp_path / "base", toys.llama(attention_bias=True))
    peft = toys.add_adapter(toys.load_plain(base), **KINDS[kind])
    run = toys.save_run(tmp_path / "run", base, peft)
    out = merge(run, tmp_path / "out", "original")
    expected = peft.merge_and_unload().state_dict()
    ours = load_file(out / "model.safetensors")
    assert ours.keys() == expected.keys()
    assert not any(torch.equal(ours[n], load_file(base / "model.safetensors")[n]) for n in ours if "q_proj.w" in n)
    for name, tensor in ours.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", ["lora", "embedding", "head", "one_side", "both_sides"])
def test_tied_embeddings(tmp_path: Path, kind: str) -> None:
    """One tensor stays one; trained on one side only, it becomes two, as the trained model has it."""
    base = toys.save_base(tmp_path / "base", toys.llama(tie_word_embeddings=True))
    lora = {
        "one_side": {"modules_to_save": ["lm_head"]},
        "both_sides": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    }.get(kind) or KINDS[kind]
    peft = toys.add_adapter(toys.load_plain(base), **lora)
    out = merge(toys.save_run(tmp_path / "run", base, peft), tmp_path / "out", "original")
    one_tensor = kind in ("lora", "both_sides")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is one_tensor
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) is not one_tensor
    assert toys.divergence(toys.logits(peft), toys.logits(toys.load_plain(out))) < 1e-9


@pytest.mark.parametrize("tied", [True, False])
def test_resized_vocabulary(tmp_path: Path, tied: bool) -> None:
    base = toys.save_base(tmp_path / "base", toys.llama(tie_word_embeddings=tied))
    model = toys.load_plain(base)
    model.resize_token_embeddings(toys.VOCABULARY + 8)
    peft = toys.add_adapter(model)
    out = merge(toys.save_run(tmp_path / "run", base, peft), tmp_path / "out", "original")
    assert json.loads((out / "config.json").read_text())["vocab_size"] == toys.VOCABULARY + 8
    assert toys.divergence(toys.logits(peft), toys.logits(toys.load_plain(out))) < 1e-9


def test_folder_is_complete(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral(), dtype=torch.bfloat16)
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_4bit(base)))
    out = merge(run, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(out, dtype="auto").parameters()} == {torch.bfloat16}
    tokenizer, trained = AutoTokenizer.from_pretrained(out), toys.byte_tokenizer()
    chat = [{"role": "user", "content": "The cat"}]
    assert tokenizer.apply_chat_template(chat) == trained.apply_chat_template(chat)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 1
    record = json.loads((out / "export.json").read_text())
    assert (record["format"], record["merge_base"], record["dtype"]) == ("safetensors", "trained", "bfloat16")


def test_end_of_turn_of_the_training_stops_generation(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base)))
    toys.write_record(run, base, [], tokenizer={"eos_token_id": 5})
    out = merge(run, tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [5, 1]


def change_config(run: Path, **entries: Any) -> None:
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"use_qalora": True, "layer_replication": [[0, 1]]}, "layer_replication, use_qalora"),
        ({"invented_next_year": {"a": 1}}, "invented_next_year"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 16}, "rank 4"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(tmp_path: Path, entries: dict[str, Any], named: str) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base)))
    change_config(run, **entries)
    with pytest.raises(InputMissingError, match=named):
        merge(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bias_where_the_base_has_none(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base), lora_bias=True))
    with pytest.raises(InputMissingError, match="no counterpart") as caught:
        merge(run, tmp_path / "out")
    assert "lora_bias" in str(caught.value.hint)


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base)))
    toys.save_base(base, toys.mistral(num_hidden_layers=1))
    with pytest.raises(InputMissingError, match="no counterpart in the base"):
        merge(run, tmp_path / "out")
    toys.save_base(base, toys.mistral(intermediate_size=192))
    with pytest.raises(InputMissingError, match="the base has"):
        merge(run, tmp_path / "out")


def test_quantised_base_is_refused(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base)))
    toys.load_4bit(base).save_pretrained(base)
    with pytest.raises(InputMissingError, match=r"stored quantised \(bitsandbytes\)"):
        merge(run, tmp_path / "out")


FORMATS = {
    "safetensors": write_safetensors,
    "gguf": lambda request: write_gguf(dataclasses.replace(request, quants=("q8_0", "f16"))),
    "gguf-lora": write_gguf_lora,
}


def spoil(path: Path, part: str, value: float) -> str:
    """Put a value into the last tensor whose name has `part`; returns its name."""
    tensors = load_file(path)
    name = [n for n in tensors if part in n][-1]
    tensors[name].view(-1)[7] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_an_adapter_that_is_not_finite_is_refused(tmp_path: Path, value: float, format: str, part: str) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base)))
    name = spoil(run / "adapter" / "adapter_model.safetensors", part, value)
    tensor = name.removeprefix("base_model.model.").partition(".lora_")[0]
    with pytest.raises(InputMissingError, match=rf"{re.escape(tensor)}.* has .* values that are NaN or infinite"):
        FORMATS[format](Request(load_run(run), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["mlp.down_proj", "input_layernorm", "embed_tokens"])
def test_a_base_that_is_not_finite_is_refused(tmp_path: Path, value: float, part: str) -> None:
    """Also in a layer that the training saw in 4 bits, whose rounding turns NaN into a number."""
    base = toys.save_base(tmp_path / "base", toys.mistral())
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_4bit(base)))
    name = spoil(base / "model.safetensors", part, value)
    for format in ("safetensors", "gguf"):
        with pytest.raises(InputMissingError, match=rf"{re.escape(name)} has 1 of .* NaN or infinite in the base"):
            FORMATS[format](Request(load_run(run), tmp_path / "out"))
        assert not (tmp_path / "out").exists()


def test_float16_overflow_names_the_way_out(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][3, 3] = 1e5
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base)))
    with pytest.raises(InputMissingError, match="100000, float16 ends at 65504"):
        merge(run, tmp_path / "out", dtype="float16")
    merge(run, tmp_path / "out", dtype="bfloat16")


def test_tokenizer_longer_than_the_embedding_is_refused(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base)))
    tokenizer = toys.byte_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(toys.VOCABULARY + 1 - len(tokenizer))])
    tokenizer.save_pretrained(run / "adapter")
    with pytest.raises(InputMissingError, match="ids up to 320, the embedding only 320 rows"):
        merge(run, tmp_path / "out")


def test_sharded_base(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", toys.mistral())
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base)))
    whole = load_file(merge(run, tmp_path / "whole") / "model.safetensors")
    (base / "model.safetensors").unlink()
    toys.load_plain(tmp_path / "whole").save_pretrained(base, max_shard_size="200KB")
    assert len(list(base.glob("model-*.safetensors"))) > 2
    files = TensorFiles.of_folder(base)
    assert set(files) == whole.keys()
    assert all(torch.equal(files.read(name), whole[name]) for name in whole)
