"""The shipped presets against what their sources say."""

import pytest

from qdpo.config import presets
from qdpo.config.resolve import resolve, value_of
from qdpo.config.steps import steps_for

SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

# What the published recipes state (see the comments in the files), setting by setting.
GARRULUS = {
    "model.name": "mlabonne/NeuralMarcoro14-7B",
    "data.format": "winogrande",
    "data.split": "train",
    "data.max_length": 1536,
    "data.max_prompt_length": 1024,
    "lora.r": 16,
    "lora.lora_alpha": 16,
    "lora.lora_dropout": 0.05,
    "lora.bias": "none",
    "lora.task_type": "CAUSAL_LM",
    "loss.loss_type": ["sigmoid"],
    "loss.beta": 0.1,
    "train.pairs_per_step": 16,
    "train.max_steps": 200,
    "train.learning_rate": 5e-5,
    "train.lr_scheduler_type": "cosine",
    "train.warmup_steps": 100,
    "train.optim": "auto",  # the source's paged_adamw_32bit where its state does not fit, else the same AdamW
    "train.gradient_checkpointing": True,
}
QLORA = {"lora.r": 128, "lora.lora_alpha": 128, "lora.lora_dropout": 0.05, "model.double_quant": False}
GEMMA = {
    **QLORA,
    "model.name": "HuggingFaceH4/zephyr-7b-gemma-sft-v0.1",
    "data.name": "argilla/dpo-mix-7k",
    "data.max_length": 1024,
    "data.max_prompt_length": 512,
    "loss.loss_type": ["sigmoid"],
    "loss.beta": 0.05,
    "train.pairs_per_step": 128,
    "train.max_steps": None,
    "train.num_train_epochs": 2.0,
    "train.learning_rate": 5e-6,
    "train.lr_scheduler_type": "cosine",
    "train.warmup_ratio": 0.1,
    "train.seed": 42,
}
STATED = {
    "quickstart": {"model.name": "quickstart", "data.name": "quickstart", "data.text": "quickstart"},
    "dpo": {
        "model.name": "quickstart",  # stands for one's own, as the data does
        "data.name": "quickstart",
        "data.template": "auto",
        "data.max_length": 1024,
        "data.max_prompt_length": 512,
        "lora.r": 16,
        "lora.lora_alpha": 16,
        "loss.loss_type": ["sigmoid"],
        "loss.beta": 0.1,
        "train.pairs_per_step": 16,
        "train.num_train_epochs": 1.0,
        "train.learning_rate": 5e-5,
        "train.lr_scheduler_type": "cosine",
        "train.warmup_ratio": 0.1,
        "train.seed": 42,
    },
    "garrulus-a40": GARRULUS,
    "garrulus-t4": {**GARRULUS, "model.dtype": "float16"},
    "neuralhermes-7b": {
        **GARRULUS,
        "model.name": "teknium/OpenHermes-2.5-Mistral-7B",
        "model.dtype": "bfloat16",
        "data.name": "Intel/orca_dpo_pairs",
        "data.format": "orca",
        "data.template": "chatml",
    },
    "zephyr-7b-qlora": {
        **QLORA,
        "model.dtype": "bfloat16",
        "data.name": "HuggingFaceH4/ultrafeedback_binarized",
        "data.split": "train_prefs",
        "data.eval_split": "test_prefs",
        "data.max_length": 1024,
        "data.max_prompt_length": 512,
        "loss.loss_type": ["sigmoid"],
        "loss.beta": 0.01,
        "train.pairs_per_step": 16,
        "train.num_train_epochs": 1.0,
        "train.learning_rate": 5e-6,
        "train.lr_scheduler_type": "cosine",
        "train.warmup_ratio": 0.1,
        "train.optim": "auto",
        "train.seed": 42,
    },
    "zephyr-7b-alpha": {
        **QLORA,
        "data.name": "openbmb/UltraFeedback",
        "train.pairs_per_step": 32,
        "train.num_train_epochs": 1.0,
        "train.learning_rate": 5e-6,
        "train.lr_scheduler_type": "linear",
        "train.warmup_ratio": 0.1,
        "train.seed": 42,
    },
    "juanako-7b-v1": {
        "model.name": "fblgit/zephyr-lora-dpo-b1",
        "data.name": "HuggingFaceH4/ultrafeedback_binarized",
        "train.pairs_per_step": 192,
        "train.num_train_epochs": 1.0,
        "train.learning_rate": 1e-4,
        "train.lr_scheduler_type": "linear",
        "train.warmup_ratio": 0.01,
        "train.seed": 42,
    },
    "zephyr-7b-gemma": GEMMA,
    "discopop-zephyr-7b-gemma": {**GEMMA, "loss.loss_type": ["discopop"], "loss.discopop_tau": 0.05},
}

# Training rows of the published run, and its steps.
STEPS = {
    "garrulus-a40": (1_600, 200),
    "garrulus-t4": (1_600, 200),
    "neuralhermes-7b": (12_859, 200),
    "zephyr-7b-alpha": (61_966, 1_936),
    "juanako-7b-v1": (61_966, 322),
    "zephyr-7b-gemma": (6_750, 104),
    "discopop-zephyr-7b-gemma": (6_750, 104),
}


def test_the_list_is_complete():
    assert set(presets.names()) == set(STATED)
    assert presets.names()[0] == "quickstart"


@pytest.mark.parametrize("name", STATED)
def test_resolves_to_what_its_source_states(name: str):
    config = resolve(name).config
    assert config.name == name
    for key, value in STATED[name].items():
        assert value_of(config, key) == value, key


@pytest.mark.parametrize("name", STATED)
def test_describes_itself(name: str):
    config = resolve(name).config
    assert config.about
    assert config.card
    assert config.notes
    assert config.model.quantization == "nf4"
    assert not config.model.trust_remote_code
    if name == "dpo":  # any base
        assert config.lora.target_modules == "all-linear"
    else:
        assert set(config.lora.target_modules) <= SEVEN
    if name not in ("juanako-7b-v1", "dpo"):
        assert set(config.lora.target_modules) == SEVEN
    # Nothing that a source states is left to a default that may change.
    for key in STATED[name]:
        if value_of(config, key) is not None and name != "garrulus-t4":
            assert key == "lora.task_type" or resolve(name).origins[key] != "default", key


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_the_published_run(name: str):
    rows, steps = STEPS[name]
    train = resolve(name).config.train
    assert steps_for(rows, train.pairs_per_step, train.num_train_epochs, train.max_steps) == steps


def test_the_neutral_preset_chooses_nothing_for_a_model_or_for_data():
    """Else it would have to be undone for one's own, see qdpo.config.replace."""
    for key, origin in resolve("dpo").origins.items():
        if key.startswith("data.") and key not in STATED["dpo"]:
            assert origin == "default", key
    assert resolve("dpo").config.train.max_steps is None


def test_garrulus_on_a_t4_is_the_same_mathematics():
    a40, t4 = resolve("garrulus-a40").config, resolve("garrulus-t4").config
    for section in ("lora", "data", "loss", "train", "engine", "reference"):
        assert getattr(a40, section) == getattr(t4, section)
    assert t4.model == a40.model.model_copy(update={"dtype": "float16"})


def test_garrulus_never_trains_on_what_leaderboards_score():
    data = resolve("garrulus-a40").config.data
    assert (data.split, data.eval_split) == ("train", "validation")
    assert "contaminated" in " ".join(resolve("garrulus-a40").config.notes)


def test_discopop_differs_from_its_parent_in_the_loss_alone():
    parent, child = resolve("zephyr-7b-gemma").config, resolve("discopop-zephyr-7b-gemma").config
    for section in ("model", "lora", "data", "train", "packing"):
        assert getattr(parent, section) == getattr(child, section)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("juanako-7b-v1", "Without UNA"),
        ("juanako-7b-v1", "Unknown of the original: beta"),
        ("zephyr-7b-alpha", "Unknown of the original: beta"),
        ("zephyr-7b-alpha", "QLoRA adaptation of"),
        ("zephyr-7b-gemma", "QLoRA adaptation of"),
        ("discopop-zephyr-7b-gemma", "not convex"),
        ("garrulus-a40", "not measured"),
        ("quickstart", "demonstration"),
    ],
)
def test_unknowns_and_deviations_reach_the_card(name: str, part: str):
    assert part in " ".join(resolve(name).config.notes)
