"""A plan as text."""

from __future__ import annotations

from collections.abc import Mapping

from qdpo.hardware import GIB
from qdpo.planner.parts import checkpointed_layers, kept_layers
from qdpo.planner.plan import Plan
from qdpo.planner.verdict import Verdict


def lines(plan: Plan, gguf: Mapping[str, int]) -> list[str]:
    """The plan, line by line; `gguf` are the bytes of the GGUF files by kind."""
    return [*_head(plan), "", *_memory(plan), "", *_time(plan), "", *_disk(plan, gguf), "", *_verdict(plan)]


def _head(plan: Plan) -> list[str]:
    config, shape = plan.config, plan.shape
    layers = f"{checkpointed_layers(shape, config)} of {shape.layers} layers computed twice"
    if kept := kept_layers(shape, config):
        layers += f", weights of {kept} kept dequantized"
    rows = [
        f"plan        {config.name}",
        f"base        {config.model.name}: {shape.parameters / 1e9:.2f} B weights ({plan.base.origin})",
        f"card        {plan.card.name}, {plan.card.memory / GIB:.2f} GiB ({plan.card_reason})",
        f"compute     {plan.dtype[0]}: {plan.dtype[1]}",
        f"data        {plan.lengths.origin}",
        f"packs       {config.packing.tokens_per_micro_batch} tokens, without gradients "
        f"{config.packing.tokens_without_grad}; {layers}",
    ]
    if config.engine != "packed":
        rows.append("engine      trl: not planned; these figures are the packed engine's")
    return rows


def _memory(plan: Plan) -> list[str]:
    found = plan.estimate
    parts = {**found.parts, "tensors together": found.peak}
    if found.context:
        parts |= {"CUDA context (assumed)": found.context, "allocator's slack (assumed)": found.slack}
    parts["needed"] = found.total
    host = ", ".join(f"{stage} {_gib(size)}" for stage, size in plan.host.items())
    return [
        f"memory at the peak ({found.when})",
        *(f"  {name:30}{_gib(size):>14}" for name, size in parts.items()),
        "peaks       " + ", ".join(f"{name} {_gib(size)}" for name, size in found.phases.items() if size),
        f"optimizer   {plan.optimizer}",
        f"host        {host} of the host's memory, beside the libraries",
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.3f} GiB" if size >= 0.01 * GIB else f"{size * 1024 / GIB:.3f} MiB"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _time(plan: Plan) -> list[str]:
    time, card = plan.duration, plan.card
    step = f"{time.step.tokens:,.0f} packed tokens, {time.step.flops / 1e12:.3g} TFLOP, {_seconds(time.step.seconds)}"
    rows = [
        f"time, estimated: {card.tflops:g} TFLOP/s x {card.efficiency:.0%} reached ({card.source})",
        f"  a step      {step}",
    ]
    if time.steps is None:
        return [*rows, "  steps       unknown: the number of rows is known after download"]
    return [
        *rows,
        f"  training    {time.steps:,} steps, {_seconds(time.training.seconds)}",
        f"  reference   {_seconds(time.reference.seconds)}",
        f"  evaluation  {_seconds(time.evaluation.seconds)}",
        f"  answers     {_seconds(time.samples.seconds)}",
        f"  together    {_seconds(time.seconds)}, without download and loading",
    ]


def _seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _disk(plan: Plan, gguf: Mapping[str, int]) -> list[str]:
    disk = plan.disk
    files = ", ".join(f"{kind} {_gb(size)}" for kind, size in gguf.items())
    return [
        f"disk        base {_gb(disk.download)}, checkpoints {_gb(disk.checkpoints)}, rest of the run {_gb(disk.run)}",
        f"            export: merged {_gb(disk.merged)}; GGUF {files}",
    ]


def _verdict(plan: Plan) -> list[str]:
    rows = [f"verdict     {plan.verdict.text}"]
    return [*rows, f"turn first  {change}"] if (change := change_first(plan.verdict)) else rows


def change_first(verdict: Verdict) -> str:
    """What to change where a plan does not fit or is tight; empty where nothing needs to be."""
    if (knob := verdict.knob) is not None:
        options = " ".join(f"--set {setting}" for setting in knob.setting.split())
        enough = "then it fits" if knob.fits else "not enough alone"
        enough += "; it changes what is learned" if knob.learns_less else ""
        return f"{options} ({knob.gives / GIB:.2f} GiB less; {enough})"
    return "" if verdict.kind == "fits" else "nothing here helps: take a larger card or a smaller base"
