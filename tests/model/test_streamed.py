"""A model that is run part by part computes what the whole model computes, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export import families, toys

from qdpo.errors import InputMissingError
from qdpo.export.verify.streams import Reading, beside, continued
from qdpo.files import read_json
from qdpo.model.merged import MergedModel
from qdpo.model.nf4 import Quantization
from qdpo.model.skeleton import AdapterSkeleton, skeleton
from qdpo.model.streamed import BEGIN, END, NotStreamableError, Passage, Streamed
from qdpo.model.tensors import TensorFiles

CPU = torch.device("cpu")
PHI3 = {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
ADAPTERS: list[tuple[str, dict[str, Any]]] = [
    *((family, PHI3 if family == "phi3" else {}) for family in families.FAMILIES),
    ("mistral", {"use_rslora": True}),
    ("mistral", {"use_dora": True}),
    ("qwen3", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    ("llama-tied-biased", {"modules_to_save": ["lm_head"]}),
    ("llama-tied-biased", {"bias": "all"}),
    ("llama", {"target_modules": [*toys.PROJECTIONS, "embed_tokens"]}),
]


def room(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(rows, columns, dtype=dtype)


def sequences() -> list[list[int]]:
    """Of different lengths, two of one length, one longer than a sliding window of the families."""
    chance = torch.Generator().manual_seed(5)
    return [torch.randint(2, toys.VOCABULARY, (n,), generator=chance).tolist() for n in (3, 17, 90, 17)]


class Toy:
    """A base in 4 bits with an adapter: whole in memory, and as a stream."""

    def __init__(self, folder: Path, family: str, lora: dict[str, Any]) -> None:
        base = toys.save_base(folder / "base", families.config(family))
        self.whole = toys.add_adapter(toys.load_4bit(base), **lora)
        self.adapter = toys.save_run(folder / "run", base, self.whole) / "adapter"
        quantized = read_json(folder / "run" / "run.json")["quantization"]
        self.config = read_json(base / "config.json")
        self.stored = MergedModel(self.config, TensorFiles.of_folder(base), None, Quantization.from_record(quantized))
        self.base = Streamed(skeleton(self.config, torch.float32), CPU)
        self.reading = Reading(self.base, self.stored.names, self.stored.read)
        adapted = AdapterSkeleton(skeleton(self.config, torch.float32), self.adapter)
        self.policy = Streamed(adapted.model, CPU)
        self.beside = beside(adapted, self.policy)

    def logits(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of base and policy, streamed."""
        asked = [(number, slice(None)) for number in range(len(sequences()))]
        plain, adapted = (Passage(streamed, sequences(), room) for streamed in (self.base, self.policy))
        for part in self.base.parts:
            weights = self.reading(part)
            if part == END:
                return list(plain.logits(asked, weights)), list(adapted.logits(asked, self.beside(part, weights)))
            plain.run(part, weights)
            adapted.run(part, self.beside(part, weights))
        raise AssertionError


@pytest.mark.parametrize(("family", "lora"), ADAPTERS, ids=lambda value: value if isinstance(value, str) else "")
def test_logits_are_those_of_the_whole_model(tmp_path: Path, family: str, lora: dict[str, Any]) -> None:
    toy = Toy(tmp_path, family, lora)
    plain, adapted = toy.logits()
    for ids, own, trained in zip(sequences(), plain, adapted, strict=True):
        assert torch.equal(trained, toys.logits(toy.whole, torch.tensor([ids])))
        with toy.whole.disable_adapter():
            if lora.get("bias") != "all":  # PEFT leaves trained biases in the base; the stream's base has its own
                assert torch.equal(own, toys.logits(toy.whole, torch.tensor([ids])))
    assert not torch.equal(plain[0], adapted[0]), "the adapter does something"


def test_a_weight_in_another_place_is_seen(tmp_path: Path) -> None:
    toy = Toy(tmp_path, "mistral", {})
    before, _ = toy.logits()
    up, gate = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"
    swapped = {up: gate, gate: up}
    toy.reading = Reading(toy.base, toy.stored.names, lambda name: toy.stored.read(swapped.get(name, name)))
    assert not torch.equal(before[0], toy.logits()[0][0])


def test_answers_are_those_of_the_whole_model(tmp_path: Path) -> None:
    toy = Toy(tmp_path, "gemma2", {})
    prompts = sequences()[:3]

    def weights(part: str) -> dict[str, torch.Tensor]:
        return toy.beside(part, toy.reading(part))

    found = continued(toy.policy, weights, prompts, frozenset(), 12)
    for ids, made in zip(prompts, found, strict=True):
        whole = toy.whole.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=[]
        )
        assert made == whole[0, len(ids) :].tolist()
    end = found[1][4]
    assert continued(toy.policy, weights, prompts, frozenset({end}), 12)[1] == found[1][: found[1].index(end)]


def test_no_weights_are_left_behind(tmp_path: Path) -> None:
    toy = Toy(tmp_path, "llama-tied-biased", {})
    toy.logits()
    for streamed in (toy.base, toy.policy):
        assert all(tensor.is_meta for tensor in streamed.model.parameters())
        assert all("forward" not in module.__dict__ for module in streamed.model.modules())


def test_each_tensor_is_in_a_part_and_no_layer_in_two(tmp_path: Path) -> None:
    toy = Toy(tmp_path, "qwen2", {})
    parts = toy.base.parts
    assert list(parts) == [BEGIN, *(f"model.layers.{i}" for i in range(3)), END]
    assert {name for part in parts.values() for name in part} == {*toy.stored.names, "lm_head.weight"}
    assert toy.base.tied == {"lm_head.weight"}
    layers = [name for part in parts for name in parts[part] if part.startswith("model.layers.")]
    assert len(layers) == len(set(layers))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    toy = Toy(tmp_path, "mistral", {})
    with pytest.raises(InputMissingError, match=r"1 weights are missing \(first: model\.norm\.weight\)"):
        Reading(toy.base, [name for name in toy.stored.names if name != "model.norm.weight"], toy.stored.read)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    toy = Toy(tmp_path, "mistral", {})
    with pytest.raises(InputMissingError, match="the model has no place for"):
        AdapterSkeleton(skeleton({**toy.config, "num_hidden_layers": 2}, torch.float32), toy.adapter)
    with pytest.raises(InputMissingError, match="the adapter has no values for"):
        AdapterSkeleton(skeleton({**toy.config, "num_hidden_layers": 4}, torch.float32), toy.adapter)
    with pytest.raises(InputMissingError, match="the model has"):
        AdapterSkeleton(skeleton({**toy.config, "intermediate_size": 256}, torch.float32), toy.adapter)


def test_a_model_that_works_between_its_layers_is_refused(tmp_path: Path) -> None:
    """It would be computed wrongly, so it is not computed at all."""
    toy = Toy(tmp_path, "mistral", {})
    decoder = toy.base.model.get_decoder()

    def doubled(input_ids: torch.Tensor, **_: Any) -> None:
        hidden = decoder.embed_tokens(input_ids)
        for layer in decoder.layers:
            hidden = layer(hidden) * 2

    decoder.forward = doubled
    with toy.base.lending(toy.reading(BEGIN)), pytest.raises(NotStreamableError, match="between its layers"):
        toy.base.begin([5, 6])
