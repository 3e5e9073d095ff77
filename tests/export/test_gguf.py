"""GGUF files hold the merged model: every tensor, every setting, every token."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from export import families, toys, toys_gguf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qdpo.errors import InputMissingError, UsageError
from qdpo.export.folder import write_safetensors
from qdpo.export.formats import Request
from qdpo.export.gguf import general
from qdpo.export.gguf.format import write_gguf
from qdpo.export.gguf.kinds import KINDS, Traits, stored_bytes, tensor_type
from qdpo.export.source import TrainedRun, load_run
from qdpo.run.schema import Record


def export(run: Path, *quants: str) -> Path:
    """Export; the file when there is one, else the folder."""
    out = write_gguf(Request(load_run(run), run / "export" / "gguf", "original", quants=quants))
    files = list(out.glob("*.gguf"))
    return files[0] if len(files) == 1 else out


@pytest.mark.parametrize("family", families.FAMILIES)
def test_f32_is_the_merged_model(tmp_path: Path, family: str) -> None:
    run = toys_gguf.make_run(tmp_path, families.config(family))
    merged = write_safetensors(Request(load_run(run), tmp_path / "merged", "original"))
    config = json.loads((merged / "config.json").read_text())
    expected = load_file(merged / "model.safetensors")
    stored = toys_gguf.state(export(run, "f32"), config, expected)
    assert stored.keys() == expected.keys()
    exact = 0.0 if "gemma" not in family else 1e-6  # 1 + w and back
    assert max(float((stored[n] - expected[n]).abs().max()) for n in expected) <= exact


def test_every_type_is_as_exact_as_it_should_be(tmp_path: Path) -> None:
    run = toys_gguf.make_run(tmp_path, families.config("mistral"))
    merged = load_file(write_safetensors(Request(load_run(run), tmp_path / "m", "original")) / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    kinds = [quant for quant in KINDS if quant != "q2_k_s"]
    out = export(run, *kinds)
    limits = {"f32": 0, "f16": 3e-4, "bf16": 2e-3, "q8_0": 0.008, "q6_k": 0.02, "q5_k_m": 0.04, "q5_k_s": 0.04}
    limits |= {"q5_1": 0.05, "q5_0": 0.06, "q4_k_m": 0.08, "q4_k_s": 0.08, "q4_1": 0.09, "q4_0": 0.11}
    limits |= {"iq4_nl": 0.08, "iq4_xs": 0.08, "q3_k_l": 0.16, "q3_k_m": 0.16, "q3_k_s": 0.16, "q2_k": 0.31}
    sizes = {}
    for quant in kinds:
        path = out / f"toy-{KINDS[quant].name}.gguf"
        stored = toys_gguf.state(path, config, merged)
        for name, tensor in merged.items():
            error = float((stored[name] - tensor).norm() / tensor.norm())
            assert error <= limits[quant], (quant, name)
        sizes[quant] = path.stat().st_size
    assert sizes["q2_k"] < sizes["q3_k_s"] < sizes["q3_k_m"] < sizes["q3_k_l"] < sizes["iq4_xs"] < sizes["iq4_nl"]
    assert sizes["q4_0"] < sizes["q4_k_m"] < sizes["q5_k_m"] < sizes["q6_k"] < sizes["q8_0"] < sizes["f16"]
    assert sizes["bf16"] == sizes["f16"] < sizes["f32"]


def test_settings(tmp_path: Path) -> None:
    run = toys_gguf.make_run(tmp_path, families.config("llama3-rope"))
    path = export(run, "f16")
    found = toys_gguf.fields(path)
    expected = {
        "general.architecture": "llama",
        "general.name": "toy",
        "general.license": "MIT",
        "general.file_type": 1,
        "llama.context_length": 256,
        "llama.embedding_length": 256,
        "llama.block_count": 3,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 64,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": toys.VOCABULARY,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": toys.byte_tokenizer().chat_template,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert len(found["tokenizer.ggml.tokens"]) == toys.VOCABULARY
    factors = toys_gguf.tensors(path)["rope_freqs.weight"]
    rotary = AutoModelForCausalLM.from_pretrained(tmp_path / "base").model.rotary_emb
    plain = 1 / 10000.0 ** (torch.arange(0, 64, 2) / 64)
    assert torch.allclose(plain / factors, rotary.inv_freq, rtol=1e-5)
    assert factors.max() == 8
    assert factors.min() == 1


def test_what_the_file_says_about_itself(tmp_path: Path) -> None:
    run = toys_gguf.make_run(tmp_path, families.config("llama"))
    sampled = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(sampled))
    found = toys_gguf.fields(export(run, "f16"))
    assert found["general.type"] == "model"
    assert found["general.size_label"] == "1.9M"
    assert (found["general.base_model.count"], found["general.base_model.0.name"]) == (1, "Base")
    assert {k: v for k, v in found.items() if k.startswith("general.sampling")} == {
        "general.sampling.temp": pytest.approx(0.6),
        "general.sampling.top_p": pytest.approx(0.9),
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": pytest.approx(1.05),
    }
    assert "DPO of base by qdpo" in found["general.description"]
    assert not [key for key, value in found.items() if str(tmp_path) in str(value)], "no path of this machine"


def test_a_base_from_the_hub_is_named_in_full(tmp_path: Path) -> None:
    def run_on(name: str, revision: str | None) -> TrainedRun:
        facts = Record.model_validate({"name": "toy", "base": {"name": name, "revision": revision}})
        return TrainedRun(tmp_path, facts, tmp_path, tmp_path)

    hub = run_on("mistralai/Mistral-7B-Instruct-v0.3", "0" * 40)
    assert hub.public_base == "mistralai/Mistral-7B-Instruct-v0.3"
    assert general.base_model(hub) == {
        "base_model_count": (1,),
        "base_model_name": (0, "Mistral 7B Instruct v0.3"),
        "base_model_version": (0, "v0.3"),
        "base_model_organization": (0, "Mistralai"),
        "base_model_repo_url": (0, "https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.3"),
    }
    local = run_on("models/alice/secret-7B", None)
    assert local.public_base == "secret-7B"
    assert Request(local, tmp_path).record("awq")["base"]["name"] == "secret-7B", "export.json is published too"
    assert general.base_model(local) == {"base_model_count": (1,), "base_model_name": (0, "Secret 7B")}


def test_the_template_names_the_end_of_turn(tmp_path: Path) -> None:
    run = toys_gguf.make_run(tmp_path, families.config("llama", vocab_size=toys.VOCABULARY + 2))
    tokenizer = toys.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|im_end|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|turn|>\n{% endfor %}"
    tokenizer.save_pretrained(run / "adapter")
    found = toys_gguf.fields(export(run, "f16"))
    assert found["tokenizer.ggml.eot_token_id"] == tokenizer.convert_tokens_to_ids("<|turn|>")
    assert found["tokenizer.ggml.eos_token_id"] == 1


def test_gemma_norms_and_llama_rows_are_moved(tmp_path: Path) -> None:
    """What a missing quirk would leave: the raw tensor."""
    gemma = toys_gguf.make_run(tmp_path / "g", families.config("gemma"))
    raw = load_file(tmp_path / "g" / "base" / "model.safetensors")
    stored = toys_gguf.tensors(export(gemma, "f32"))
    assert torch.equal(stored["blk.0.attn_norm.weight"], raw["model.layers.0.input_layernorm.weight"] + 1)
    llama = toys_gguf.make_run(tmp_path / "l", families.config("llama"), target_modules=["v_proj"])
    raw = load_file(tmp_path / "l" / "base" / "model.safetensors")
    q = toys_gguf.tensors(export(llama, "f32"))["blk.0.attn_q.weight"]
    head = raw["model.layers.0.self_attn.q_proj.weight"][:64]
    assert torch.equal(q[0], head[0])
    assert torch.equal(q[1], head[32])
    assert torch.equal(q[2], head[1])


def test_a_window_is_told_and_cuts_the_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = toys_gguf.make_run(tmp_path, families.config("mistral", sliding_window=96))
    assert toys_gguf.fields(export(run, "f16"))["llama.context_length"] == 96
    assert "attends to a window of 96 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ("llama", {"rope_parameters": {**families.YARN_ROPE, "attention_factor": 1.2}}, "YaRN.*attention_factor"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100"),
    ],
)
def test_what_llama_cpp_computes_differently_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], named: str
) -> None:
    run = toys_gguf.make_run(tmp_path, families.config(family, **changes))
    with pytest.raises(InputMissingError, match=named):
        export(run, "f16")
    assert list((run / "export").glob("*")) == []


def test_unknown_family_and_untied_gemma_are_refused(tmp_path: Path) -> None:
    import transformers

    settings = {k: v for k, v in families.COMMON.items() if k != "vocab_size"}
    config = transformers.StableLmConfig(**settings, vocab_size=toys.VOCABULARY)
    with pytest.raises(InputMissingError, match="no GGUF for StableLmForCausalLM"):
        export(toys_gguf.make_run(tmp_path / "s", config), "f16")
    gemma = toys_gguf.make_run(tmp_path / "g", families.config("gemma"), modules_to_save=["lm_head"])
    with pytest.raises(InputMissingError, match="takes the embedding as the head"):
        export(gemma, "f16")


def test_values_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    run = toys_gguf.make_run(tmp_path, families.config("llama"))
    weights = run / "adapter" / "adapter_model.safetensors"
    adapter = load_file(weights)
    name = next(n for n in adapter if "layers.1.mlp.up_proj.lora_B" in n)
    adapter[name][0, 0] = 1e9
    save_file(adapter, weights)
    with pytest.raises(InputMissingError, match=r"layers\.1\.mlp\.up_proj.*F16 ends at 65504"):
        export(run, "f16")
    with pytest.raises(InputMissingError, match=r"layers\.1\.mlp\.up_proj.*do not fit Q4_K"):
        export(run, "q4_k_m")
    assert not (run / "export" / "gguf").exists()
    export(run, "bf16")


def test_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q9_k is not known"):
        export(toys_gguf.make_run(tmp_path, families.config("llama")), "q9_k", "f16")


def test_mix_of_a_7b_model() -> None:
    """Type of every tensor of a Llama with 32 blocks, as llama.cpp's own Q4_K_M files of 7B models have it."""
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]

    def of(quant: str, name: str, columns: int = 4096, **traits: Any) -> str:
        return tensor_type(KINDS[quant], name, (4096, columns), Traits(32, shared_head=False, **traits)).name

    for part in ("attn_v", "attn_qkv", "ffn_down"):
        assert [i for i in range(32) if of("q4_k_m", f"blk.{i}.{part}.weight") == "Q6_K"] == more
        assert [i for i in range(32) if of("q5_k_m", f"blk.{i}.{part}.weight") == "Q6_K"] == more
        assert [i for i in range(32) if of("q4_k_s", f"blk.{i}.{part}.weight") == "Q5_K"] == [0, 1, 2, 3]
    assert of("q4_k_m", "blk.5.attn_q.weight") == "Q4_K"
    assert of("q4_k_m", "output.weight") == of("q4_0", "output.weight") == "Q6_K"
    assert of("q8_0", "output.weight") == "Q8_0"
    assert of("q4_k_m", "token_embd.weight") == "Q4_K"
    assert of("q4_k_m", "blk.5.attn_q.weight", columns=4096 + 32) == "Q5_0"
    assert of("q6_k", "blk.5.attn_q.weight", columns=100) == "F16"
    assert of("iq4_xs", "blk.5.attn_q.weight", columns=4096 + 32) == "IQ4_NL"
    assert of("q2_k", "blk.5.attn_q.weight", columns=4096 + 32) == "Q4_0"
    shared = Traits(32, shared_head=True)
    assert tensor_type(KINDS["q4_k_m"], "token_embd.weight", (9, 256), shared).name == "Q6_K"
    assert tensor_type(KINDS["q4_k_m"], "blk.0.attn_norm.weight", (256,), shared).name == "F32"


def test_an_importance_matrix_changes_the_mix() -> None:
    """llama.cpp spends no more bits on the first ways down when it knows which columns count, and does for Q4_0."""

    def of(quant: str, importance: bool) -> str:
        traits = Traits(32, shared_head=False, importance=importance)
        return tensor_type(KINDS[quant], "blk.0.ffn_down.weight", (4096, 11008), traits).name

    assert [of("iq4_xs", False), of("iq4_xs", True)] == ["Q5_K", "IQ4_XS"]
    assert [of("q4_0", False), of("q4_0", True)] == ["Q4_0", "Q4_1"]
    assert [of("q5_0", False), of("q5_0", True)] == ["Q5_0", "Q5_1"]
    assert of("q2_k_s", True) == "Q4_K"
    blind = Traits(32, shared_head=False)
    assert tensor_type(KINDS["q2_k_s"], "token_embd.weight", (4096, 4096), blind).name == "Q2_K"
    with pytest.raises(UsageError, match="q2_k_s needs an importance matrix"):
        tensor_type(KINDS["q2_k_s"], "blk.9.ffn_up.weight", (4096, 4096), blind)


# Bits a weight of Llama-3.1-8B's files, from llama.cpp's tools/quantize/README.md.
@pytest.mark.parametrize(
    ("quant", "published"),
    [
        *[("q2_k_s", 2.9697), ("q2_k", 3.1593), ("q3_k_s", 3.6429), ("q3_k_m", 3.9960), ("q3_k_l", 4.2979)],
        *[("iq4_xs", 4.4597), ("iq4_nl", 4.6818), ("q4_k_s", 4.6672), ("q4_k_m", 4.8944), ("q5_k_s", 5.5704)],
        *[("q5_k_m", 5.7036), ("q6_k", 6.5633), ("q8_0", 8.5008), ("f16", 16.0005)],
    ],
)
def test_published_bits_a_weight(quant: str, published: float) -> None:
    layer = {"attn_q": (4096, 4096), "attn_k": (1024, 4096), "attn_v": (1024, 4096), "attn_output": (4096, 4096)}
    layer |= {"ffn_gate": (14336, 4096), "ffn_up": (14336, 4096), "ffn_down": (4096, 14336)}
    layer |= {"attn_norm": (4096,), "ffn_norm": (4096,)}
    tensors = {f"blk.{i}.{name}.weight": shape for i in range(32) for name, shape in layer.items()}
    tensors |= {"token_embd.weight": (128256, 4096), "output.weight": (128256, 4096)}
    tensors |= {"output_norm.weight": (4096,), "rope_freqs.weight": (64,)}
    traits = Traits(32, shared_head=False, sharing=4, importance=quant == "q2_k_s")
    stored = sum(
        stored_bytes(tensor_type(KINDS[quant], name, shape, traits), math.prod(shape))
        for name, shape in tensors.items()
    )
    weights = sum(math.prod(shape) for shape in tensors.values())
    assert 8 * stored / weights == pytest.approx(published, abs=1e-4)


def test_written_files_open_in_ggufs_reader_with_aligned_tensors(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(export(toys_gguf.make_run(tmp_path, families.config("qwen2")), "q4_k_m"))
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)
    assert len(reader.tensors) == 2 + 12 * 3
