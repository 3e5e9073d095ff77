"""Random models to measure on: nothing is downloaded, and speed does not depend on the weights' values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SHAPES: dict[str, dict[str, Any]] = {
    # 57 M parameters: small enough for a CPU, with the proportions of Mistral
    "mistral-57m-random": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "mistral-7b-random": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
    },
    "mistral-toy-random": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
}


def random_base(name: str, device: torch.device, dtype: torch.dtype, nf4: bool, seed: int = 0) -> Any:
    """A frozen Mistral with random weights, made on its device layer by layer, in NF4 if asked.

    Args:
        name: one of `SHAPES`.
        device: where it is made.
        dtype: compute type.
        nf4: quantize the decoder's linear layers with bitsandbytes (double quantization).
        seed: of the weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    config = AutoConfig.for_model("mistral", **SHAPES[name], **settings, sliding_window=None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    generator = torch.Generator(device).manual_seed(seed)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and nf4 and "layers." in path:
            model.set_submodule(path, _nf4(module, device, dtype, generator))
            continue
        for key, parameter in list(module.named_parameters(recurse=False)):
            value = torch.ones(parameter.shape, dtype=dtype, device=device)
            if parameter.ndim > 1:
                value.normal_(0, 0.04, generator=generator)
            setattr(module, key, nn.Parameter(value, requires_grad=False))
    rotary: Any = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config, device=device)
    model.config.use_cache = False
    if nf4:
        # as transformers marks it: without this PEFT takes 4-bit layers for plain linear ones
        model.is_loaded_in_4bit = True
    return model.requires_grad_(False)


def _nf4(module: nn.Linear, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(
        module.in_features, module.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    weight = torch.empty(module.out_features, module.in_features, dtype=dtype, device=device)
    weight.normal_(0, 0.04, generator=generator)
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True).to(device)
    layer.support_avx512bf16_for_cpu = False
    return layer


def give_lora_b_values(policy: nn.Module, seed: int = 1) -> None:
    """Random values for lora_B, so that policy and reference differ and every gradient is tested."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
