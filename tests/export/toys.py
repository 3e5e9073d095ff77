"""Small models with real architectures, and run directories around them, for the export tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from qdpo.files import write_manifest

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEXT = ["Once upon a time there was a little girl who liked to play in the park.", "The cat sat; the dog ran!"] * 20
VOCABULARY = 320


def mistral(**changes: Any) -> PretrainedConfig:
    """A Mistral of 0.2 M parameters."""
    settings = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "sliding_window": None,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return MistralConfig(**{**settings, **changes})


def llama(**changes: Any) -> PretrainedConfig:
    """A Llama of 0.2 M parameters."""
    settings = {k: v for k, v in mistral().to_dict().items() if k not in ("model_type", "sliding_window", "dtype")}
    return LlamaConfig(**{**settings, "architectures": None, **changes})


def byte_tokenizer(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `size` tokens with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return fast


def save_base(folder: Path, config: PretrainedConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A random model whose logits are not all alike: trained models have larger weights than fresh ones."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 1.5 / math.sqrt(weight.shape[1]))
            elif name.endswith("bias"):
                weight.normal_(0, 0.3)
    model.to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def load_4bit(base: Path, load_dtype: torch.dtype = torch.float32, double_quant: bool = True) -> Any:
    """The base as QLoRA training loads it, on the CPU."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=load_dtype, quantization_config=quantization, device_map={"": "cpu"}
    )
    for module in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes repacks the weights at the first forward without gradients, computes in
        # bfloat16 from then on and cannot unpack them; training switches that off, and so do its tests.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load_plain(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The base, or a merged model, as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)


def add_adapter(model: Any, size: float = 0.02, seed: int = 1, **lora: Any) -> PeftModel:
    """Attach an adapter that does something: what training changes is drawn at random."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS, "task_type": "CAUSAL_LM", **lora}
    peft = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.normal_(0, size)
            elif "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
            elif "modules_to_save" in name or (parameter.requires_grad and name.endswith("bias")):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return peft.eval()


def save_run(
    folder: Path, base: Path, peft: PeftModel, load_dtype: torch.dtype = torch.float32, double_quant: bool = True
) -> Path:
    """A finished run directory around a model with an adapter."""
    quantized = [
        name.removeprefix("base_model.model.").removesuffix(".base_layer")
        for name, module in peft.named_modules()
        if type(module).__name__ == "Linear4bit" and not name.endswith("lora_A")
    ]
    adapter = folder / "adapter"
    peft.save_pretrained(adapter)
    byte_tokenizer().save_pretrained(adapter)
    write_record(folder, base, quantized, load_dtype, double_quant)
    return folder


def write_record(
    folder: Path,
    base: Path,
    quantized: list[str],
    load_dtype: torch.dtype = torch.float32,
    double_quant: bool = True,
    **entries: Any,
) -> None:
    """The parts of run.json that an export reads."""
    record = {
        "schema": 1,
        "name": "toy",
        "state": "finished",
        "base": {"name": str(base), "folder": str(base), "revision": None, "architecture": None, "license": "MIT"},
        "quantization": {
            "method": "nf4" if quantized else "none",
            "double_quant": double_quant,
            "blocksize": 64,
            "load_dtype": str(load_dtype).removeprefix("torch."),
            "modules": quantized,
        },
        "tokenizer": {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None},
        **entries,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))


def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Logits [tokens, vocabulary] in float32 on fixed random ids."""
    if ids is None:
        ids = torch.randint(0, VOCABULARY, (1, 64), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[0].float()


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean KL(p || q) in nats per token, from logits."""
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def add_data(run: Path, base: Path, pairs: int = 24) -> Path:
    """Give a run its configuration and preference data, so that its export can be scored."""
    nouns = ["cat", "dog", "girl", "park", "time", "play"]
    rows = [
        {
            "prompt": f"Who sat in the {nouns[i % 6]}? {i}",
            "chosen": f"The {nouns[i % 5]} sat there {i}.",
            "rejected": f"Once upon a {nouns[i % 4]}, {i} ran!",
        }
        for i in range(pairs)
    ]
    data = run / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "toy",
        "model": {"name": str(base), "dtype": "float32"},
        "data": {"name": str(data), "max_length": 100, "max_prompt_length": 60, "eval_fraction": 0.5},
        "verify": {"answers": 3, "answer_tokens": 24},
    }
    (run / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    write_manifest(run / "adapter")
    return run
