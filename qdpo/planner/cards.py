"""Cards by name: what they report as memory, and what their makers say of their speed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from qdpo.cuda import KERNEL_MODULE
from qdpo.errors import UsageError
from qdpo.hardware import GIB, Device, find_device, machine_memory

BANDWIDTH_REACHED = 0.8
"""Share of the datasheet's bandwidth that long copies reach."""

LAUNCH_SECONDS = 0.8e-3
"""Time to launch one layer's kernels once, below which no pass gets however small the pack is."""


@dataclass(frozen=True)
class Card:
    """A device to plan for.

    Attributes:
        name: as printed.
        memory: bytes that it reports.
        capability: CUDA compute capability; None for a CPU.
        tflops: dense half-precision matrix products with fp32 sums, 10^12 operations a second (datasheet).
        bandwidth: of its memory, bytes a second (datasheet).
        efficiency: share of `tflops` that large products reach; an assumption unless `source` says otherwise.
        source: where the figures come from.
    """

    name: str
    memory: int
    capability: tuple[int, int] | None
    tflops: float
    bandwidth: float
    efficiency: float
    source: str

    @property
    def is_cpu(self) -> bool:
        """Whether it is this machine's processor."""
        return self.capability is None

    @property
    def flops(self) -> float:
        """Operations a second that large products reach."""
        return self.tflops * 1e12 * self.efficiency

    @property
    def copied(self) -> float:
        """Bytes a second that long copies reach."""
        return self.bandwidth * BANDWIDTH_REACHED


def _card(name: str, gib: float, capability: tuple[int, int], tflops: float, gb_s: float, efficiency: float) -> Card:
    return Card(name, round(gib * GIB), capability, tflops, gb_s * 1e9, efficiency, "NVIDIA datasheet")


# Memory: what the driver leaves of the nominal size. Efficiency: of large products in half precision, an assumption.
CARDS = {
    "t4": _card("NVIDIA T4", 14.56, (7, 5), 65, 320, 0.42),
    "l4": _card("NVIDIA L4", 22.0, (8, 9), 121, 300, 0.55),
    "rtx3090": _card("NVIDIA GeForce RTX 3090", 23.5, (8, 6), 71, 936, 0.75),
    "rtx4090": _card("NVIDIA GeForce RTX 4090", 23.5, (8, 9), 165, 1008, 0.75),
    "a40": _card("NVIDIA A40", 44.4, (8, 6), 149.7, 696, 0.68),
    "a100": _card("NVIDIA A100 40 GB", 39.4, (8, 0), 312, 1555, 0.70),
    "a100-80": _card("NVIDIA A100 80 GB", 79.2, (8, 0), 312, 2039, 0.70),
    "h100": _card("NVIDIA H100 SXM", 79.1, (9, 0), 989, 3350, 0.65),
    "h200": _card("NVIDIA H200", 139.8, (9, 0), 989, 4800, 0.65),
}


def card_named(text: str) -> Card:
    """The card that `--gpu` names: one of `CARDS`, or a number of GiB.

    Raises:
        UsageError: neither.
    """
    if (found := CARDS.get(text.lower())) is not None:
        return found
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:\s*gib)?", text.lower())
    if match is None or not 0 < float(match[1]) < 10_000:
        raise UsageError(f"--gpu {text}: no such card", f"give GiB, or one of {', '.join(CARDS)}")
    return _of_size(float(match[1]), f"a card with {match[1]} GiB")


def _of_size(gib: float, name: str) -> Card:
    """A card of which only the memory is known; its speed is that of the nearest known one."""
    near = min(CARDS.values(), key=lambda card: abs(card.memory - gib * GIB))
    source = f"speed taken from {near.name}, the nearest in memory"
    return replace(near, name=name, memory=round(gib * GIB), source=source)


def card_for(text: str | None, preset_card: str, preset_gib: float | None) -> tuple[Card, str]:
    """The card to plan for, and why this one.

    Args:
        text: what `--gpu` says.
        preset_card: the card that the preset names.
        preset_gib: its memory; None where it needs no GPU.
    """
    if text is not None:
        return card_named(text), "--gpu"
    if KERNEL_MODULE.exists():
        # only now: finding out takes torch, whose import is slow
        device = find_device()
        if device.kind == "cuda":
            return card_of(device), "found here"
    if preset_gib is None:
        return this_machine(), "the preset needs no GPU"
    known = next((card for card in CARDS.values() if card.name in preset_card), None)
    if known is None:
        return _of_size(preset_gib, preset_card), "the preset's; no GPU was found here"
    return replace(known, memory=round(preset_gib * GIB)), "the preset's; no GPU was found here"


def card_of(device: Device) -> Card:
    """The card of a device that was found."""
    if device.kind == "cpu":
        return this_machine()
    words = device.name.replace("Tesla ", "")
    known = next((card for card in CARDS.values() if words.endswith(card.name.removeprefix("NVIDIA "))), None)
    near = known or _of_size(device.memory / GIB, device.name)
    return replace(near, name=device.name, memory=device.memory, capability=device.capability)


def this_machine() -> Card:
    """The processor as a card; its speed is a guess: 32 fp32 operations a core and cycle at 2.5 GHz."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Card(
        f"CPU, {cores} cores", machine_memory(), None, cores * 0.08, 10e9 * cores, 0.4, "a guess from the cores"
    )
