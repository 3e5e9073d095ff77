"""Third stage: what the reference says of every pair that the run will look at."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo import console
from qdpo.files import digest_of
from qdpo.run.folder import REFERENCE
from qdpo.run.schema import Reference
from qdpo.training.stages.state import RunState, total_steps

if TYPE_CHECKING:
    from peft import PeftModel

    from qdpo.data.prepare import Prepared
    from qdpo.engine.engine import Engine
    from qdpo.training.out_of_memory import Budgets
    from qdpo.training.recipe import Split


def token_budgets(run: RunState) -> Budgets:
    """The tokens of a pass: as configured, or as this run has found that memory allows."""
    from qdpo.training.out_of_memory import Budgets

    device = f"{run.device.name}, {run.device.memory:,} bytes"
    budgets = Budgets(run.config, device, remember=lambda found: run.save(memory=found))
    budgets.recall(run.record.memory)
    return budgets


def reference_pass(
    run: RunState, engine: Engine, policy: PeftModel, data: Prepared, budgets: Budgets
) -> tuple[Split, Split]:
    """Compute what the reference says of every pair that the run will look at."""
    from qdpo.paths import cache_folder
    from qdpo.training.order import permutation, visited
    from qdpo.training.recipe import Split
    from qdpo.training.reference import reference_logps

    config = run.config
    steps = total_steps(config, len(data.train))
    wanted = visited(len(data.train), config.train.seed, config.train.pairs_per_step, steps)
    # in the order of first use, so that a longer run's passes begin with a shorter one's
    place = {pair: i for i, pair in enumerate(permutation(len(data.train), config.train.seed, 0))}
    begin = time.monotonic()
    results = [
        reference_logps(
            engine,
            policy,
            pairs,
            needed,
            budgets=budgets,
            start=config.reference == "start",
            identity=reference_identity(run, engine),
            pin=run.folder / REFERENCE,
            shared=cache_folder("reference") if config.packing.reference_cache == "shared" else None,
        )
        for pairs, needed in (
            (data.train, sorted(wanted, key=place.__getitem__)),
            (data.heldout, range(len(data.heldout))),
        )
    ]
    computed, reused = sum(r.computed for r in results), sum(r.reused for r in results)
    checked, gap = sum(r.checked for r in results), max(r.gap for r in results)
    remark = f" ({reused:,} known, {checked} of them computed again: within {gap:.1g} nats)" if checked else ""
    remark = remark or (f" ({reused:,} from this run's folder)" if reused else "")
    console.good(
        f"reference: log-probabilities of {computed + reused:,} pairs in {time.monotonic() - begin:.1f} s{remark}"
    )
    run.save(reference=Reference(computed=computed, reused=reused, checked=checked, largest_difference=gap))
    return Split(data.train, results[0].table), Split(data.heldout, results[1].table)


def reference_identity(run: RunState, engine: Engine) -> dict[str, str]:
    """What the reference's log-probabilities depend on besides the pair, by name."""
    from qdpo.files import sha256_file

    record, quantization, adapter = run.record, run.record.quantization, run.config.model.adapter
    identity = {
        "format": "1",
        "weights_sha256": str(record.base.weights_sha256),
        "revision": str(record.base.revision),
        "quantization": json.dumps(quantization.model_dump(exclude={"modules"}, exclude_unset=True), sort_keys=True),
        "quantized_modules": digest_of(sorted(quantization.modules or ())),
        "dtype": str(record.dtype.compute),
        "attention": f"{engine.layout.name}, {record.engine.attention}, {record.engine.kernel}",
    }
    if record.dtype.compute in ("float16", "bfloat16"):
        identity["head"] = "logits in fp32"
    if record.adapter.grids_sha256 is not None:
        identity["grids_sha256"] = record.adapter.grids_sha256
    if run.config.backend != "hf":
        identity["backend"] = json.dumps(record.backend.model_dump())
    if run.config.reference == "start" and adapter is not None:
        identity["adapter_sha256"] = sha256_file(Path(adapter) / "adapter_model.safetensors")
    return identity
