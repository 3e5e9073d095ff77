"""Second stage: the base, its adapter, the engine around them, and what must hold before the first step."""

from __future__ import annotations

import math
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo import console
from qdpo.files import sha256_file
from qdpo.hardware import mixed_precision
from qdpo.run.schema import Adapter, Backend, Base, Dtype, Quantization
from qdpo.run.schema import Engine as EngineRecord
from qdpo.training.stages.state import RunState

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.prepare import Prepared
    from qdpo.engine.engine import Engine


def load_policy(run: RunState) -> tuple[PeftModel, Engine]:
    """Load the base, attach the adapter, find the layout that suits them."""
    from qdpo.model import unsloth
    from qdpo.model.load import NF4_BLOCKSIZE, load_base, read_license
    from qdpo.model.lora import attach, disable_dropout, lora_layers, trainable
    from qdpo.model.source import find
    from qdpo.model.weights import check_adapter, known_weights_sha256, weights_sha256

    config = run.config
    fast = config.backend == "unsloth"
    source = find(config.model.name, config.model.revision, code=config.model.trust_remote_code)
    hashes = {"config_sha256": sha256_file(source.folder / "config.json")}
    if known := known_weights_sha256(source):
        hashes["weights_sha256"] = known
    start = check_adapter(Path(config.model.adapter).expanduser()) if config.model.adapter else None
    # before minutes are spent on loading
    run.expect(base=hashes, adapter={"start_sha256": start})
    base = unsloth.load_base(config, run.device) if fast else load_base(config.model, run.device)
    hashes["weights_sha256"] = base.weights_sha256 or weights_sha256(source)
    console.note(f"computing in {_short(base.dtype)} on {run.device.name}: {base.dtype_reason}")
    parameters = parameter_count(base.model)
    if fast:
        policy = unsloth.attach(base.model, config)
    else:
        policy = attach(base.model, config.lora, config.train.seed, config.model.adapter)
    if config.train.disable_dropout:
        disable_dropout(policy)
    run.save(
        backend=Backend(name=config.backend, version=unsloth.installed_version() if fast else version("transformers")),
        dtype=Dtype(compute=_short(base.dtype), reason=base.dtype_reason),
        base=Base(
            name=config.model.name,
            folder=os.path.abspath(base.source.folder),
            revision=base.source.revision,
            architecture=(base.model.config.architectures or [type(base.model).__name__])[0],
            parameters=parameters,
            license=read_license(base.source.folder),
            **hashes,
        ),
        quantization=Quantization(
            method=config.model.quantization,
            double_quant=config.model.double_quant,
            blocksize=NF4_BLOCKSIZE,
            load_dtype=_short(base.load_dtype),
            modules=base.quantized,
        ),
        adapter=Adapter(
            modules=len(lora_layers(policy)),
            trainable_parameters=sum(p.numel() for p in trainable(policy).values()),
            start_sha256=start,
        ),
    )
    return policy, set_up_engine(run, policy, base.dtype)


def set_up_engine(run: RunState, policy: PeftModel, dtype: torch.dtype) -> Engine:
    """Attach the engine, and compare its gradients with those of the model without it.

    Raises:
        UnavailableError: only stock TRL can train this model.
    """
    from qdpo.engine.attach import attach
    from qdpo.engine.engine import Engine
    from qdpo.engine.gradient_check import check_gradients
    from qdpo.engine.layouts import Separate
    from qdpo.engine.recompute import checkpointed
    from qdpo.training.invariants import Check

    autocast = mixed_precision(run.device, dtype)
    if run.config.engine == "trl":
        # TRL runs the model as it is, with its own checkpointing; this engine only serves the checks before the start
        model: Any = policy.get_base_model()
        own = model.config._attn_implementation
        run.save(engine=EngineRecord(way="trl", attention=own))
        return Engine(model, run.device.torch, autocast, Separate(), own=own)
    engine, decision = attach(
        policy,
        run.device.torch,
        autocast,
        run.config.packing,
        checkpointing=run.config.train.gradient_checkpointing,
        kernel=run.record.engine.kernel,
    )
    if decision.way != "packed":
        console.note(f"engine: {decision.reason}")
    gap = check_gradients(engine)
    run.checks.append(Check(f"engine {decision.way}", f"{decision.reason}; {engine.fusion.describe()}").say())
    run.save(
        engine=EngineRecord(
            **decision.as_dict(),
            fused=dict(engine.fusion.counts),
            checkpointed_layers=checkpointed(engine.model),
            gradient_difference=gap,
        )
    )
    return engine


def parameter_count(model: Any) -> int:
    """Parameters of a model, those in 4 bits counted in full."""
    return sum(
        math.prod(state.shape) if (state := getattr(p, "quant_state", None)) is not None else p.numel()
        for p in model.parameters()
    )


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def run_checks(
    run: RunState,
    engine: Engine,
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Prepared,
) -> None:
    """Assert what must hold before the first step; each check is one green line."""
    from qdpo.data.tokenise import Tokeniser
    from qdpo.run.tokenizer import save_tokenizer
    from qdpo.training import invariants

    with tempfile.TemporaryDirectory(prefix="qdpo-tokenizer-") as folder:
        pairs = data.heldout[: invariants.SAMPLE]
        shown = [str(tokenizer.decode([*pair.prompt, *pair.chosen])) for pair in pairs]
        count = save_tokenizer(tokenizer, run.config.model, Path(folder), shown)
    limits = run.config.data
    tokeniser = Tokeniser(tokenizer, data.template, limits.max_length, limits.max_prompt_length)
    sample = sorted(data.train, key=lambda pair: len(pair.prompt))[: invariants.SAMPLE]
    fresh = run.config.model.adapter is None
    run.checks += [
        invariants.Check("tokenizer", f"as it is saved, it gives the same ids on {count} texts").say(),
        invariants.check_finite(policy).say(),
        invariants.check_targets(policy, run.config.lora).say(),
        invariants.check_sequences(data.train + data.heldout, data.template, tokeniser.bos, limits.max_length).say(),
        invariants.check_prefix(data.train[: 4 * invariants.SAMPLE]).say(),
        invariants.check_policy_is_reference(
            engine, policy, sample, run.config.loss, budget=run.config.packing.tokens_without_grad, fresh=fresh
        ).say(),
    ]
