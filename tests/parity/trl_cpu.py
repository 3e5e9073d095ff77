"""Stock `trl.DPOTrainer` on a CPU, small enough for a unit test: the oracle of the parity tests.

TRL computes its log-probabilities with a Triton kernel. `install_torch_head` puts a plain torch function in its place;
everything else (tokenisation, collator, reference, losses, metrics) stays TRL's own.

    with install_torch_head():
        trainer = make_trl_trainer("ipo", rows=make_rows(6), output_dir=tmp_path)
        batch = trl_batch(trainer)
        loss = trainer.compute_loss(trainer.model, batch)
        metrics = trl_metrics(trainer)
"""

from __future__ import annotations

import os

# Before any Hugging Face import: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import tokenizers
import torch
import trl.trainer.utils
from peft import LoraConfig
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

# Again, for a process that had imported huggingface_hub before this file.
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True

VOCAB = 64
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class TorchHead:
    """The contract of TRL's `ChunkedLogProbFunction`, with all logits at once and torch's own gradients."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: Sequence[str] = (),
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Statistics of the next-token distribution at N positions.

        Args:
            hidden: (N, hidden size). Last hidden states.
            weight: (vocabulary, hidden size). LM head.
            bias: (vocabulary,) or None.
            targets: (N,) int64. The next token's id.
            temperature: divides the logits.
            chunk_size: vocabulary entries per tile; of no effect here.
            softcap: final logit soft-capping, None for none.
            logit_scale: multiplies the logits, before the soft-capping.
            outputs: which of the optional statistics to return; None stands for the others.

        Returns:
            log_probs, entropy (nats), log_sum_sq_probs, mean_logits, is_top1: (N,) each, in TRL's order.
        """
        z = torch.nn.functional.linear(hidden, weight, bias).float() * logit_scale
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        z = z / temperature
        log_p = torch.log_softmax(z, dim=-1)
        at_target = targets[:, None]

        def optional(name: str, value: Tensor) -> Tensor | None:
            return value if name in outputs else None

        # TRL counts the first of several equal maxima.
        is_max = z == z.max(dim=-1, keepdim=True).values
        first_max = is_max & (is_max.cumsum(dim=-1) == 1)
        return (
            log_p.gather(1, at_target)[:, 0],
            optional("entropy", -(log_p.exp() * log_p).sum(dim=-1)),
            optional("log_sum_sq_probs", torch.logsumexp(2 * log_p.detach(), dim=-1)),
            optional("mean_logits", z.detach().mean(dim=-1)),
            optional("is_top1", first_max.gather(1, at_target)[:, 0]),
        )


@contextmanager
def install_torch_head() -> Iterator[None]:
    """Let TRL's trainers run without Triton; on leaving, TRL is as it was.

    TRL looks its kernel up at every forward, so both the making and the use of a trainer belong inside.
    """
    utils: Any = trl.trainer.utils
    original = utils._ChunkedLogProbFunction
    utils._ChunkedLogProbFunction = TorchHead
    try:
        yield
    finally:
        utils._ChunkedLogProbFunction = original


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A whitespace tokenizer of 64 tokens: <pad>, <s>, </s>, then w3 .. w63. It puts <s> in front."""
    vocab = {token: i for i, token in enumerate([PAD, BOS, EOS, *(f"w{i}" for i in range(3, VOCAB))])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=PAD))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def make_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """n preference pairs of random words, every length different: prompts of 2 to 9, completions of 1 to 12 words."""
    draw = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{draw.randrange(3, VOCAB)}" for _ in range(draw.randint(low, high)))

    return [{"prompt": words(2, 9), "chosen": " " + words(1, 12), "rejected": " " + words(1, 12)} for _ in range(n)]


def make_model(kind: str = "llama", seed: int = 0) -> LlamaForCausalLM | MistralForCausalLM:
    """A random fp32 decoder: 2 layers, hidden size 32, 4 heads, 2 KV heads, 64 tokens. `kind`: llama or mistral."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**shape, sliding_window=8))
    return LlamaForCausalLM(LlamaConfig(**shape))


def make_trl_trainer(
    loss_type: str | Sequence[str],
    *,
    rows: Sequence[dict[str, Any]],
    output_dir: Path | str,
    kind: str = "llama",
    lora_b_std: float = 0.1,
    seed: int = 0,
    **config: Any,
) -> DPOTrainer:
    """Stock TRL with a tiny random model and a LoRA adapter on all projections; the base is the reference.

    Args:
        loss_type: TRL's name, or several.
        rows: preference pairs (prompt, chosen, rejected as text); all of them are one batch of `trl_batch`.
        output_dir: nothing is written there unless the caller trains.
        kind: llama or mistral.
        lora_b_std: spread of the random values of LoRA's B, so that policy and reference differ; 0 leaves B at 0.
        seed: of the model and of LoRA's B.
        config: further `DPOConfig` fields, e.g. beta, label_smoothing, loss_weights, f_divergence_type.
    """
    arguments: dict[str, Any] = {
        "output_dir": str(output_dir),
        "loss_type": [loss_type] if isinstance(loss_type, str) else list(loss_type),
        "per_device_train_batch_size": len(rows),
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": seed,
    }
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DPOTrainer(
            model=make_model(kind, seed),
            args=DPOConfig(**(arguments | config)),
            train_dataset=datasets.Dataset.from_list(list(rows)),
            processing_class=make_tokenizer(),
            peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS, task_type="CAUSAL_LM"),
        )
    model: Any = trainer.model
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(lora_b_std * torch.randn(parameter.shape, generator=generator))
    model.train()
    return trainer


def trl_batch(trainer: DPOTrainer) -> dict[str, Tensor]:
    """All rows of the trainer in their order, as TRL collates them.

    Returns:
        input_ids, attention_mask, completion_mask: (2n, longest row) int64 each, the n chosen rows first.
    """
    rows: Any = trainer.train_dataset
    return trainer.data_collator([rows[i] for i in range(len(rows))])


def trl_metrics(trainer: DPOTrainer) -> dict[str, float]:
    """What the last `compute_loss` of the trainer (in training mode) would log, by TRL's names."""
    return {name: values[-1] for name, values in trainer._metrics["train"].items()}
