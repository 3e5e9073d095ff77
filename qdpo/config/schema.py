"""Every setting of a run: its type, default, meaning and unit, in one place.

The models are strict: an unknown key or a wrong type is an error. Where a field means the same thing as a field of
transformers' `TrainingArguments`, TRL's `DPOConfig` or PEFT's `LoraConfig`, it has the same name. The loss has a
module of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from qdpo.config.loss import STRICT, LossSettings

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Automatic = Literal["auto"]

ALL_LINEAR = "all-linear"
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""Linear layers that choose experts, which get no adapter."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven linear layers of a Llama-like decoder block, attention first."""

PRECISIONS = (
    *("float32", "float16", "bfloat16", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0"),
    *("q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s", "awq"),
)
"""What exports are rounded to: dtypes of safetensors, types of GGUF, AWQ."""


class Section(BaseModel):
    """A group of settings."""

    model_config = STRICT


class ModelSection(Section):
    """The base model and how it is loaded."""

    name: Annotated[str, Field(min_length=1, description="hub name, local folder, or `quickstart` (embedded)")]
    revision: Annotated[str | None, Field(description="hub revision: branch, tag or commit; null takes `main`")] = None
    tokenizer: Annotated[
        str | None, Field(description="hub name or folder of the tokenizer; null takes the base's")
    ] = None
    adapter: Annotated[
        str | None, Field(description="folder of a LoRA adapter to continue from; null starts a new one")
    ] = None
    quantization: Annotated[
        Literal["nf4", "none"], Field(description="nf4: 4-bit NormalFloat by bitsandbytes; none: as stored")
    ] = "nf4"
    double_quant: Annotated[bool, Field(description="quantize the NF4 scales too (saves 0.37 bit per weight)")] = True
    nf4_cache: Annotated[
        Literal["auto", "on", "off"],
        Field(
            description="keep the base in NF4 in $QDPO_CACHE/base (~/.cache/qdpo/base), about 0.6 bytes a weight: "
            "later starts read that instead of the 16-bit files; auto: bases from 1 GB on, where the disk has room"
        ),
    ] = "auto"
    in_16_bits: Annotated[
        list[str],
        Field(
            description="kinds of weights (experts, ...) that may stay out of 4 bits: bitsandbytes rounds linear "
            "layers alone, and more than 5 % of a base's bytes beside them is an error otherwise"
        ),
    ] = []
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Field(description="compute type; auto: bfloat16 from compute capability 8.0, float16 below, float32 on a CPU"),
    ] = "auto"
    attn_implementation: Annotated[
        Literal["sdpa", "eager", "flash_attention_2"],
        Field(description="attention of ordinary (unpacked) forward passes"),
    ] = "sdpa"
    trust_remote_code: Annotated[
        bool, Field(description="run Python code that comes with the model; needs a 40-hex revision")
    ] = False


def is_target(name: str, targets: Sequence[str] | str) -> bool:
    """Whether a linear layer of a decoder gets an adapter, by its last name and `lora.target_modules`."""
    return name not in ROUTERS if targets == ALL_LINEAR else name in targets


class LoraSection(Section):
    """The adapter (PEFT's names)."""

    r: Annotated[PositiveInt, Field(description="rank")] = 16
    lora_alpha: Annotated[PositiveInt, Field(description="scale: updates are multiplied by lora_alpha / r")] = 16
    lora_dropout: Annotated[
        float, Field(ge=0, lt=1, description="dropout on the adapter's input, see train.disable_dropout")
    ] = 0.05
    bias: Annotated[Literal["none", "all", "lora_only"], Field(description="which biases are trained")] = "none"
    task_type: Annotated[Literal["CAUSAL_LM"], Field(description="PEFT's task type")] = "CAUSAL_LM"
    use_rslora: Annotated[bool, Field(description="scale by lora_alpha / sqrt(r) instead")] = False
    target_modules: Annotated[
        Literal["all-linear"] | Annotated[list[str], Field(min_length=1)],
        Field(
            description="names of the linear layers that get an adapter; never the head; all-linear: every one but "
            "head and routers"
        ),
    ] = list(PROJECTIONS)
    leave_out: Annotated[
        list[str],
        Field(
            description="kinds of layer (linear_attn, ...) that stay without an adapter though they take turns with "
            "others that get one"
        ),
    ] = []


class DataSection(Section):
    """The preference pairs and how they become tokens."""

    name: Annotated[
        str, Field(min_length=1, description="hub dataset, local file or folder, or `quickstart` (embedded)")
    ]
    config: Annotated[str | None, Field(description="configuration (subset) of a hub dataset, or of a folder")] = None
    revision: Annotated[str | None, Field(description="hub revision; null takes `main`")] = None
    split: Annotated[str, Field(min_length=1, description="split to train on")] = "train"
    eval_name: Annotated[str | None, Field(description="held-out dataset; null takes data.name")] = None
    eval_split: Annotated[
        str | None, Field(description="held-out split; null cuts eval_fraction from the training split")
    ] = None
    eval_fraction: Annotated[
        float, Field(gt=0, lt=1, description="share of the rows held out when there is no eval_split, cut by prompt")
    ] = 0.05
    max_rows: Annotated[PositiveInt | None, Field(description="use the first N training rows; null takes all")] = None
    max_eval_rows: Annotated[PositiveInt | None, Field(description="use the first N held-out rows; null takes all")] = (
        None
    )
    format: Annotated[
        Literal[
            "auto",
            "pairs",
            "implicit_prompt",
            "implicit_text",
            "transcripts",
            "orca",
            "alpaca",
            "alpaca_lists",
            "llama_factory",
            "ultrafeedback",
            "ultrafeedback_binarized",
            "named_pairs",
            "step_dpo",
            "answer_lists",
            "openai",
            "vertex",
            "nova",
            "swift",
            "nemo_rl",
            "scored_answers",
            "helpsteer",
            "oasst",
            "oasst_tree",
            "summaries",
            "webgpt",
            "shp",
            "rated_conversations",
            "judged",
            "argilla",
            "label_studio",
            "winogrande",
            "minimal_pairs",
        ],
        Field(description="schema of the rows; auto recognises it from columns and values"),
    ] = "auto"
    columns: Annotated[
        dict[str, str],
        Field(description="column of prompt, chosen, rejected, system where they have other names"),
    ] = {}
    ignore: Annotated[
        list[str],
        Field(
            description="columns, and keys of messages, that are passed over: rows with pictures, tools, thinking "
            "beside the text or weights are refused otherwise"
        ),
    ] = []
    mixture: Annotated[
        dict[str, float],
        Field(
            description="further datasets and how often their pairs are used (data.name's own is 1 unless it is here): "
            "1 once, 0.25 a seeded quarter, 2 twice; NAME or NAME[SPLIT]"
        ),
    ] = {}
    ties: Annotated[
        Literal["auto", "drop", "keep"],
        Field(description="pairs with equal scores; auto drops them where the score alone makes the pair"),
    ] = "auto"
    system: Annotated[
        str | None,
        Field(description="system message for rows that bring none; null adds none, an empty text an empty one"),
    ] = None
    template: Annotated[
        str, Field(description="chat template: `auto` (the tokenizer's), `none` (plain text), a name, or a file")
    ] = "auto"
    max_length: Annotated[
        PositiveInt, Field(description="tokens of prompt + completion; completions are cut on the right")
    ] = 1024
    max_prompt_length: Annotated[
        PositiveInt, Field(description="tokens of the prompt; prompts are cut on the left")
    ] = 512
    on_bad_row: Annotated[
        Literal["error", "drop"], Field(description="what to do with rows that cannot be used; drops are counted")
    ] = "error"
    special_text: Annotated[
        Literal["error", "split", "drop"],
        Field(
            description="text that spells out special tokens or the template's marks, which would forge turns: error "
            "makes it a row that cannot be used, split encodes it as text, drop leaves the row out and counts it"
        ),
    ] = "error"
    clean: Annotated[
        list[Literal["entities", "mojibake", "invisible"]],
        Field(
            description="what is mended in every message before anything else: entities (`&amp;`), mojibake (`Ã©`), "
            "invisible (characters that show nothing); the pairs that it changes are counted"
        ),
    ] = []
    contamination: Annotated[
        list[str],
        Field(
            description="evaluation sets to compare the training pairs with: a file, or a hub dataset as "
            "NAME:CONFIG[SPLIT]; #COLUMN behind either names the column"
        ),
    ] = []
    text: Annotated[
        str | None, Field(description="held-out plain text (JSONL, column `text`) to watch for forgetting; null: none")
    ] = None

    @model_validator(mode="after")
    def _prompt_fits(self) -> Self:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) leaves no room for a completion in max_length "
                f"({self.max_length}); lower data.max_prompt_length or raise data.max_length"
            )
        wrong = [name for name, weight in self.mixture.items() if weight <= 0]
        if wrong:
            raise ValueError(f"mixture: the weight of {wrong[0]} is not above 0; remove the dataset, or weigh it")
        return self


class TrainSection(Section):
    """Optimizer, schedule, length, evaluation and checkpoints."""

    pairs_per_step: Annotated[PositiveInt, Field(description="global batch: pairs per optimizer step")] = 16
    max_steps: Annotated[PositiveInt | None, Field(description="optimizer steps; null trains num_train_epochs")] = None
    num_train_epochs: Annotated[
        float, Field(gt=0, description="passes over the training pairs, if max_steps is null")
    ] = 1.0
    learning_rate: Annotated[float, Field(gt=0, description="peak learning rate")] = 5e-5
    lr_scheduler_type: Annotated[
        Literal["cosine", "linear", "constant", "constant_with_warmup"], Field(description="shape of the schedule")
    ] = "cosine"
    warmup_steps: Annotated[
        NonNegativeInt, Field(description="steps of linear warmup; exclusive with warmup_ratio")
    ] = 0
    warmup_ratio: Annotated[Fraction, Field(description="warmup as a share of all steps")] = 0.0
    optim: Annotated[
        Literal["auto", "adamw_torch_fused", "adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit"],
        Field(
            description="which AdamW; the paged ones are bitsandbytes', whose state can spill to host memory on CUDA; "
            "auto: torch's fused one where its state fits on the card, else paged_adamw_32bit"
        ),
    ] = "auto"
    adam_beta1: Annotated[float, Field(ge=0, lt=1, description="decay of the first moment")] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1, description="decay of the second moment")] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0, description="added to the denominator")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, description="decoupled weight decay")] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0, description="gradients are clipped to this norm; 0 does not clip")] = (
        1.0
    )
    gradient_checkpointing: Annotated[
        bool, Field(description="recompute activations in the backward pass: less memory, about a third more time")
    ] = True
    disable_dropout: Annotated[
        bool, Field(description="train with every dropout at 0, as TRL does (the adapter keeps its configured value)")
    ] = True
    # NumPy's generators take 32 bits.
    seed: Annotated[
        int, Field(ge=0, le=2**32 - 1, description="seed of data order, adapter initialisation and dropout")
    ] = 42
    eval_every: Annotated[PositiveInt, Field(description="optimizer steps between evaluations")] = 50
    log_every: Annotated[PositiveInt, Field(description="optimizer steps between logged metrics")] = 5
    save_every: Annotated[PositiveInt, Field(description="optimizer steps between checkpoints")] = 50
    save_minutes: Annotated[float, Field(gt=0, description="minutes after which a checkpoint is written anyway")] = 5.0
    keep: Annotated[PositiveInt, Field(description="newest checkpoints that are kept")] = 2
    room_for_export: Annotated[
        bool,
        Field(description="refuse a disk that has no room for a merged 16-bit export too; false: exports go elsewhere"),
    ] = True
    load_best: Annotated[
        Literal["none", "accuracy", "loss"],
        Field(description="final adapter: the last step's, or the best evaluation's by held-out accuracy or loss"),
    ] = "none"
    early_stop: Annotated[
        Literal["none", "accuracy", "loss"],
        Field(description="end the run when held-out accuracy or loss has stopped getting better"),
    ] = "none"
    early_stop_evals: Annotated[
        PositiveInt, Field(description="evaluations in a row without a new best after which early_stop ends the run")
    ] = 3
    grid: Annotated[
        str | None,
        Field(
            description="GGUF type, such as q4_k_m, that every pass rounds base and adapter to, so that a file of that "
            "type is the model that was trained; null trains the sum unrounded"
        ),
    ] = None
    report_to: Annotated[
        list[Literal["tensorboard", "wandb", "trackio"]], Field(description="experiment trackers besides metrics.jsonl")
    ] = []

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps and warmup_ratio are both set; keep one and set the other to 0")
        return self


class SamplesSection(Section):
    """Prompts that base and policy answer at every evaluation (greedy), kept in samples.jsonl and judged there."""

    count: Annotated[
        NonNegativeInt,
        Field(
            description="how many held-out prompts; what is written is judged from 20 on; 0 switches samples off "
            "unless prompts are given"
        ),
    ] = 48
    shown: Annotated[PositiveInt, Field(description="how many of them the terminal shows")] = 3
    prompts: Annotated[list[str], Field(description="prompts of your own, instead of held-out ones")] = []
    answer_key: Annotated[
        str | None,
        Field(
            description="JSONL of prompts with lists of `right` and `wrong` answers, which answers to held-out prompts "
            "are compared with, word for word; `quickstart`: the embedded one"
        ),
    ] = None
    max_new_tokens: Annotated[PositiveInt, Field(description="tokens of an answer at the most")] = 64


class PackingSection(Section):
    """How the packed engine cuts its work; decides memory and speed, never the mathematics."""

    tokens_per_micro_batch: Annotated[
        PositiveInt, Field(description="packed tokens of one forward and backward pass: the memory knob")
    ] = 4096
    tokens_without_grad: Annotated[
        PositiveInt, Field(description="packed tokens of one pass without gradients (reference, evaluation)")
    ] = 16384
    checkpoint_layers: Annotated[
        NonNegativeInt | Automatic,
        Field(
            description="layers whose activations are recomputed when train.gradient_checkpointing is on, with the "
            "same gradients for any number; auto: as few as fit into the memory that there is"
        ),
    ] = "auto"
    keep_dequantized: Annotated[
        NonNegativeInt | Automatic,
        Field(
            description="layers whose 4-bit weights are kept in 16 bits besides, so that no pass dequantizes them "
            "again, with the same results; auto: on a GPU as many as fit when no layer is recomputed any more"
        ),
    ] = "auto"
    fused_lora: Annotated[
        bool, Field(description="run a frozen linear layer and its adapter as one function: faster, less memory")
    ] = True
    fused_mlp: Annotated[
        bool, Field(description="run a gated MLP with its adapters as one function: faster, less memory")
    ] = True
    fused_norm: Annotated[bool, Field(description="run RMSNorm as one function: less memory")] = True
    skip_unscored: Annotated[
        bool,
        Field(
            description="run the last layer's MLP, where it is fused, on the rows that predict a completion token only"
        ),
    ] = True
    reference_cache: Annotated[
        Literal["shared", "run"],
        Field(
            description="shared: the reference's log-probabilities are kept in $QDPO_CACHE (~/.cache/qdpo) and used "
            "again by every run with the same base and pairs; run: kept in the run directory only"
        ),
    ] = "shared"


class VerifySection(Section):
    """What an export of the run must reach; `qdpo verify` holds it to these limits."""

    pairs: Annotated[PositiveInt, Field(description="held-out pairs that an export is scored on")] = 64
    min_projection: Annotated[
        Fraction,
        Field(
            description="least projection, on the adapter's change, of what an export has beside the same export of "
            "the bare base; as much above 1 is too much"
        ),
    ] = 0.9
    max_kl: Annotated[
        dict[str, float],
        Field(
            description="largest mean KL(merged weights || export), nats per token, by precision (f16, q8_0, bfloat16, "
            "awq, ...); without a limit an export may be twice as far away as the base is from its own rounding"
        ),
    ] = {}
    answers: Annotated[
        NonNegativeInt, Field(description="greedy answers that are looked at for loops and early ends; 0: none")
    ] = 12
    answer_tokens: Annotated[PositiveInt, Field(description="most tokens of such an answer")] = 96

    @model_validator(mode="after")
    def _known_precisions(self) -> Self:
        if unknown := [name for name in self.max_kl if name not in PRECISIONS]:
            raise ValueError(f"max_kl names {unknown[0]}, which is no precision; known are {', '.join(PRECISIONS)}")
        if negative := [name for name, limit in self.max_kl.items() if limit < 0]:
            raise ValueError(f"max_kl: the limit of {negative[0]} is below 0")
        return self


class RunConfig(Section):
    """Everything that decides what a run does."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="name of the preset and its runs")]
    about: Annotated[str, Field(description="what this recipe is, in one line")] = ""
    card: Annotated[str, Field(description="smallest GPU that the recipe is meant for")] = ""
    gpu_memory_gib: Annotated[float | None, Field(gt=0, description="memory of that GPU; null: none needed")] = None
    notes: Annotated[list[str], Field(description="deviations and unknowns, repeated on the model card")] = []
    engine: Annotated[
        Literal["packed", "trl"], Field(description="packed: qdpo's shared-prefix rows; trl: stock trl.DPOTrainer")
    ] = "packed"
    backend: Annotated[
        Literal["hf", "unsloth"],
        Field(description="who loads the base and attaches the adapter: hf: transformers and PEFT; unsloth: unsloth"),
    ] = "hf"
    reference: Annotated[
        Literal["base", "start"],
        Field(description="what rewards are measured against: the base, or the adapter that training starts from"),
    ] = "base"
    model: ModelSection
    lora: LoraSection = LoraSection()
    data: DataSection
    loss: LossSettings = LossSettings()
    train: TrainSection = TrainSection()
    packing: PackingSection = PackingSection()
    verify: VerifySection = VerifySection()
    samples: SamplesSection = SamplesSection()

    @model_validator(mode="after")
    def _reference_needs_adapter(self) -> Self:
        if self.reference == "start" and self.model.adapter is None:
            raise ValueError("reference: start needs model.adapter; use reference: base when training a new adapter")
        if self.train.grid is not None and not self._can_train_on_grid():
            raise ValueError(
                "train.grid needs engine: packed, backend: hf, packing.fused_lora: true, lora.bias: none, a new "
                "adapter, and no dropout (train.disable_dropout: true)"
            )
        if self.model.trust_remote_code and not _is_commit(self.model.revision):
            raise ValueError("model.trust_remote_code needs model.revision to be a 40-hex commit that you have read")
        return self

    def _can_train_on_grid(self) -> bool:
        still = self.train.disable_dropout or self.lora.lora_dropout == 0
        new = self.model.adapter is None and self.lora.bias == "none"
        return still and new and self.engine == "packed" and self.backend == "hf" and self.packing.fused_lora


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)
