"""Bases with random weights of a given shape, on disk or on a device, and preference pairs to train them on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qdpo.data.pairs import TokenPair
from qdpo.hardware import GIB
from qdpo.model.source import ASSETS
from qdpo.planner.bare import shape_of
from qdpo.planner.lengths import PairLengths
from qdpo.planner.shapes import Shape

Settings = dict[str, Any]
"""Content of a base's config.json, as far as it is not the default of its kind."""


def mistral(
    hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, intermediate: int, vocab: int
) -> Settings:
    """A Mistral of other sizes."""
    return {
        "model_type": "mistral",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        "sliding_window": None,
    }


TOY = mistral(256, 2, 4, 2, 64, 512, 1600)
"""For rehearsals; more rows than the tokenizer has tokens, as in the real shapes."""

MIDDLE = mistral(1024, 8, 16, 4, 64, 3072, 32000)
"""0.16 B weights: seconds on any card, and activations that are large beside them."""

SPREAD = 0.02
"""Standard deviation of the weights; Mistral's own before training."""


def config_of(base: Settings) -> Any:
    """transformers' configuration of a base."""
    from transformers import AutoConfig

    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    return AutoConfig.for_model(**{"max_position_embeddings": 32768, **base, **ends})


def empty_model(base: Settings, dtype: torch.dtype) -> Any:
    """The model without weights: its parameters have shapes only, its buffers are real."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config_of(base), dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()
    return model


def sizes_of(base: Settings) -> Shape:
    """How many weights it has, and where."""
    return shape_of(empty_model(base, torch.bfloat16))


class Weights:
    """Random weights, made on a device.

    Args:
        device: where they are made.
        dtype: their type.
        seed: the same one gives the same weights in the same order.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, shape: torch.Size) -> Tensor:
        """A matrix, or the ones of a norm."""
        if len(shape) < 2:
            return torch.ones(shape, dtype=self.dtype, device=self.device)
        return torch.empty(shape, dtype=self.dtype, device=self.device).normal_(0, SPREAD, generator=self.generator)


def random_model(
    base: Settings, device: torch.device, dtype: torch.dtype, quantization: str, double_quant: bool
) -> Any:
    """A frozen model with random weights on its device; its decoder's linear layers in NF4 if asked.

    Args:
        base: the model's configuration.
        device: where it is made, layer by layer.
        dtype: compute type.
        quantization: `nf4` or `none`.
        double_quant: quantize the scales too.
    """
    model, weights = empty_model(base, dtype), Weights(device, dtype)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and quantization == "nf4" and "layers." in path:
            model.set_submodule(path, _nf4(module, weights, double_quant))
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(weights(parameter.shape), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    model.tie_weights()
    model.config.use_cache = False
    if quantization == "nf4":
        # as transformers marks it: without this PEFT takes 4-bit layers for plain linear ones
        model.is_loaded_in_4bit = True
    return model.requires_grad_(False)


def _nf4(module: nn.Linear, weights: Weights, double_quant: bool) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(
        module.in_features, module.out_features, False, weights.dtype, double_quant, "nf4", device="meta"
    )
    value = Params4bit(
        weights(module.weight.shape), requires_grad=False, quant_type="nf4", compress_statistics=double_quant
    )
    layer.weight = value.to(weights.device)
    layer.support_avx512bf16_for_cpu = False
    return layer


def require_space(folder: Path, size: float) -> None:
    """Skip the test where the disk has no room."""
    free = shutil.disk_usage(folder).free
    if free < size:
        pytest.skip(f"needs {size / GIB:.0f} GiB of disk in {folder}, {free / GIB:.0f} GiB are free (set TMPDIR)")


def write_base(
    folder: Path, base: Settings, device: torch.device, dtype: torch.dtype, shard_bytes: float = 4 * GIB
) -> None:
    """Write a base as the hub has them: config, shards with their index, and the quickstart's tokenizer.

    Args:
        folder: where to.
        base: the model's configuration.
        device: where the weights are made.
        dtype: they are stored in.
        shard_bytes: of a shard; a larger tensor is a shard of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = empty_model(base, dtype)
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(model, Weights(device, dtype), shard_bytes), 1):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "base" / name, folder / name)


def _shards(model: Any, weights: Weights, size: float) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    # a tied head is the same parameter and comes once
    for name, parameter in model.named_parameters():
        value = weights(parameter.shape).cpu()
        if shard and sum(tensor.nbytes for tensor in shard.values()) + value.nbytes > size:
            yield shard
            shard = {}
        shard[name] = value
    yield shard


def write_pairs(folder: Path, rows: int, heldout: int, long_every: int) -> tuple[Path, Path]:
    """Preference pairs from the quickstart's sentences, with some that are longer than any preset allows.

    Rejected sentences begin with a word that no chosen one has: a few steps on a random base are enough to see that.

    Args:
        folder: where to.
        rows: training pairs.
        heldout: held-out pairs, all of them short.
        long_every: of that many training pairs, the last is long.

    Returns:
        The two files.
    """
    source = [json.loads(line) for line in (ASSETS / "pairs" / "train.jsonl").read_text().splitlines()]
    draw = random.Random(0)

    for row in source:
        row["rejected"] = f"Perhaps {row['rejected']}"

    def many(key: str) -> str:
        return " ".join(row[key] for row in draw.sample(source, 200))

    made = []
    for number in range(rows):
        row = source[number % len(source)]
        if number % long_every == long_every - 1:
            row = {
                "prompt": f"{many('prompt')} {row['prompt']}",
                "chosen": many("chosen"),
                "rejected": many("rejected"),
            }
        made.append(row)
    paths = folder / "train.jsonl", folder / "heldout.jsonl"
    for path, content in zip(paths, (made, source[-heldout:]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return paths


def token_pairs(lengths: list[PairLengths], vocabulary: int, seed: int = 0) -> list[TokenPair]:
    """Pairs of random tokens with exactly these lengths, whose completions begin differently."""
    draw = random.Random(seed)

    def words(count: int) -> list[int]:
        return [draw.randrange(8, vocabulary) for _ in range(count)]

    return [
        TokenPair(row, words(pair.prompt), [4, *words(pair.chosen - 1)], [5, *words(pair.rejected - 1)])
        for row, pair in enumerate(lengths)
    ]
