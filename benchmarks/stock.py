"""Stock `trl.DPOTrainer` on given pairs, as it is and with another output head.

On a CPU TRL scores every position of a padded batch with torch; on a GPU a Triton kernel scores the completion tokens.
That kernel cannot run here, so for what TRL is like on a GPU a plain torch function takes its place (`stand_in`): the
kernel's tiles, its mathematics and its saving (nothing; the backward pass recomputes each tile). The kernel's
by-products (entropy, mean logit, top-1), which Triton gets almost for free and torch would not, are left out: this
favours TRL.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qdpo.data.pairs import TokenPair

TILE_TOKENS = 4096


class TorchHead(torch.autograd.Function):
    """The contract of TRL's `ChunkedLogProbFunction` (1.15 and 1.16), log-probabilities only."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: Sequence[str] = (),
    ) -> tuple[Tensor | None, ...]:
        assert bias is None
        assert temperature == logit_scale == 1.0
        assert softcap is None
        ctx.set_materialize_grads(False)
        logps = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        normaliser = torch.empty_like(logps)
        for begin in range(0, hidden.shape[0], TILE_TOKENS):
            part = slice(begin, begin + TILE_TOKENS)
            logits = (hidden[part] @ weight.t()).float()
            normaliser[part] = torch.logsumexp(logits, -1)
            logps[part] = logits.gather(1, targets[part, None])[:, 0] - normaliser[part]
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        zeros = torch.zeros_like(logps)
        ctx.mark_non_differentiable(zeros)
        return logps, zeros, None, zeros, zeros.bool()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normaliser = ctx.saved_tensors
        g = grads[0]
        gradient = torch.empty_like(hidden, dtype=torch.float32)
        for begin in range(0, hidden.shape[0], TILE_TOKENS):
            part = slice(begin, begin + TILE_TOKENS)
            logits = (hidden[part] @ weight.t()).float()
            p = logits.sub_(normaliser[part, None]).exp_().mul_(-g[part, None])
            p.scatter_add_(1, targets[part, None], g[part, None])
            gradient[part] = p @ weight.float()
        return gradient.to(hidden.dtype), *(None,) * 8


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Inside, TRL's head is `TorchHead`, and is given the completion tokens only, as its Triton kernel is."""
    import trl.trainer.utils

    utils = vars(trl.trainer.utils)
    own = {name: utils[name] for name in ("_ChunkedLogProbFunction", "_use_triton") if name in utils}
    utils |= {"_ChunkedLogProbFunction": TorchHead, "_use_triton": lambda device: True}
    try:
        yield
    finally:
        del utils["_use_triton"]
        utils |= own


def own_head_runs(device: torch.device) -> bool:
    """Whether TRL as it is computes log-probabilities on a device: from 1.16 on everywhere, before that on a GPU."""
    import trl.trainer.utils

    return device.type == "cuda" or hasattr(trl.trainer.utils, "_use_triton")


def _tokenizer() -> Any:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "w": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_trainer(model: Any, rank: int, checkpointing: bool, half: str | None) -> Any:
    """TRL's trainer around a base model; it attaches the adapter itself.

    The model is handed to accelerate as `trainer.train()` does it, which is where mixed precision comes from:
    transformers' `compute_loss_context_manager` leaves it to accelerate.

    Args:
        model: a frozen base.
        rank: of the adapter on all seven projections.
        checkpointing: TRL's default is True.
        half: `bf16` or `fp16`: mixed precision; None computes in the model's own type.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    from qdpo.config.schema import PROJECTIONS

    datasets.disable_progress_bars()
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(prefix="qdpo-bench-"),
        use_cpu=model.device.type == "cpu",
        bf16=half == "bf16",
        fp16=half == "fp16",
        report_to="none",
        max_length=None,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="no",
    )
    adapter = LoraConfig(
        r=rank, lora_alpha=16, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=list(PROJECTIONS)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DPOTrainer(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list([{"prompt": "w", "chosen": " w", "rejected": " w w"}]),
            processing_class=_tokenizer(),
            peft_config=adapter,
        )
    for parameter in trainer.model.parameters():
        # TRL keeps the adapter of a 4-bit base in bf16; fp32 on both sides, so that the gradients can be compared
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.accelerator.prepare_model(trainer.model)
    return trainer


def batches(trainer: Any, pairs: Sequence[TokenPair], size: int, device: torch.device) -> list[dict[str, Tensor]]:
    """TRL's own collated batches of `size` pairs, in the order of the pairs."""
    rows = [{"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in pairs]
    collated = [trainer.data_collator(rows[i : i + size]) for i in range(0, len(rows), size)]
    return [{key: value.to(device) for key, value in batch.items()} for batch in collated]


def step(trainer: Any, collated: Sequence[dict[str, Tensor]], pairs: int, reference: Tensor | None = None) -> float:
    """Forward and backward of one optimizer step.

    Args:
        trainer: TRL's.
        collated: the micro-batches.
        pairs: n pairs in all.
        reference: (n, 2) precomputed reference log-probabilities, as `precompute_ref_log_probs` stores them; None
            computes them in the step, TRL's default.

    Returns:
        The loss.
    """
    trainer.precompute_ref_logps = reference is not None
    total, begin = 0.0, 0
    for batch in collated:
        size = batch["input_ids"].shape[0] // 2
        inputs = dict(batch)
        if reference is not None:
            part = reference[begin : begin + size].to(batch["input_ids"].device)
            inputs |= {"ref_chosen_logps": part[:, 0], "ref_rejected_logps": part[:, 1]}
        begin += size
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, inputs) * (size / pairs)
        loss.backward()
        total += float(loss.detach())
    return total
