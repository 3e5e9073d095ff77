"""Cards by name: what they report as memory, and what their makers say of their speed."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

from qdpo import cpu
from qdpo.cuda import KERNEL_MODULE
from qdpo.errors import UsageError
from qdpo.hardware import GIB, Device, find_device, machine_memory, memory_limit

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
        bfloat16: whether it computes in bfloat16 by itself.
    """

    name: str
    memory: int
    capability: tuple[int, int] | None
    tflops: float
    bandwidth: float
    efficiency: float
    source: str
    bfloat16: bool

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
    new = capability >= (8, 0)
    return Card(name, round(gib * GIB), capability, tflops, gb_s * 1e9, efficiency, "NVIDIA datasheet", new)


# Memory: what the driver leaves of the nominal size, as torch reports it. Speed: dense products in half precision with
# fp32 sums, and bandwidth, from NVIDIA's datasheets and architecture whitepapers (of Pascal without tensor cores: its
# vector units). Efficiency: of large products in half precision, an assumption.
CARDS = {
    "p100": _card("NVIDIA P100", 15.9, (6, 0), 18.7, 732, 0.70),
    "v100": _card("NVIDIA V100 16 GB", 15.77, (7, 0), 112, 900, 0.60),
    "v100-32": _card("NVIDIA V100 32 GB", 31.74, (7, 0), 125, 900, 0.60),
    "t4": _card("NVIDIA T4", 14.56, (7, 5), 65, 320, 0.42),
    "rtx2080ti": _card("NVIDIA GeForce RTX 2080 Ti", 10.75, (7, 5), 56.9, 616, 0.70),
    "rtx3060": _card("NVIDIA GeForce RTX 3060", 11.76, (8, 6), 25.6, 360, 0.75),
    "rtx3070": _card("NVIDIA GeForce RTX 3070", 7.79, (8, 6), 40.6, 448, 0.75),
    "rtx3080": _card("NVIDIA GeForce RTX 3080", 9.78, (8, 6), 59.5, 760, 0.75),
    "rtx3080ti": _card("NVIDIA GeForce RTX 3080 Ti", 11.76, (8, 6), 68.2, 912, 0.75),
    "rtx3090": _card("NVIDIA GeForce RTX 3090", 23.5, (8, 6), 71, 936, 0.75),
    "rtx3090ti": _card("NVIDIA GeForce RTX 3090 Ti", 23.5, (8, 6), 80, 1008, 0.75),
    "rtx4060": _card("NVIDIA GeForce RTX 4060", 7.75, (8, 9), 30.2, 272, 0.75),
    "rtx4060ti": _card("NVIDIA GeForce RTX 4060 Ti 16 GB", 15.6, (8, 9), 44.1, 288, 0.75),
    "rtx4070": _card("NVIDIA GeForce RTX 4070", 11.6, (8, 9), 58.3, 504, 0.75),
    "rtx4070ti-super": _card("NVIDIA GeForce RTX 4070 Ti SUPER", 15.6, (8, 9), 88.2, 672, 0.75),
    "rtx4080": _card("NVIDIA GeForce RTX 4080", 15.7, (8, 9), 97.5, 717, 0.75),
    "rtx4080-super": _card("NVIDIA GeForce RTX 4080 SUPER", 15.6, (8, 9), 104.4, 736, 0.75),
    "rtx4090": _card("NVIDIA GeForce RTX 4090", 23.5, (8, 9), 165, 1008, 0.75),
    "rtx5070ti": _card("NVIDIA GeForce RTX 5070 Ti", 15.5, (12, 0), 87.9, 896, 0.75),
    "rtx5080": _card("NVIDIA GeForce RTX 5080", 15.5, (12, 0), 112.6, 960, 0.75),
    "rtx5090": _card("NVIDIA GeForce RTX 5090", 31.36, (12, 0), 209.5, 1792, 0.75),
    "a10": _card("NVIDIA A10", 22.0, (8, 6), 125, 600, 0.68),
    "a10g": _card("NVIDIA A10G", 22.0, (8, 6), 70, 600, 0.68),
    "a30": _card("NVIDIA A30", 23.5, (8, 0), 165, 933, 0.70),
    "a40": _card("NVIDIA A40", 44.4, (8, 6), 149.7, 696, 0.68),
    "a6000": _card("NVIDIA RTX A6000", 47.4, (8, 6), 154.8, 768, 0.68),
    "rtx6000-ada": _card("NVIDIA RTX 6000 Ada Generation", 47.4, (8, 9), 364.2, 960, 0.65),
    "rtx-pro-6000": _card("NVIDIA RTX PRO 6000 Blackwell", 94.9, (12, 0), 503.8, 1792, 0.65),
    "l4": _card("NVIDIA L4", 22.0, (8, 9), 121, 300, 0.55),
    "l40": _card("NVIDIA L40", 44.4, (8, 9), 181, 864, 0.65),
    "l40s": _card("NVIDIA L40S", 44.4, (8, 9), 362, 864, 0.60),
    "a100": _card("NVIDIA A100 40 GB", 39.4, (8, 0), 312, 1555, 0.70),
    "a100-80": _card("NVIDIA A100 80 GB", 79.2, (8, 0), 312, 2039, 0.70),
    "h100-pcie": _card("NVIDIA H100 PCIe", 79.1, (9, 0), 756, 2000, 0.60),
    "h100": _card("NVIDIA H100 SXM", 79.1, (9, 0), 989, 3350, 0.65),
    "h200": _card("NVIDIA H200", 139.8, (9, 0), 989, 4800, 0.65),
    "b200": _card("NVIDIA B200", 178.4, (10, 0), 2250, 8000, 0.60),
}

CPU = "cpu"
"""The name of this machine's processor."""

LARGEST_BARE_GIB = 200
"""A number without a unit is GiB up to here; beyond, it is rather the name of a card."""
BESIDE_THE_NAME = re.compile(
    r"nvidia|geforce|tesla|quadro|graphics|generation|blackwell|workstation|edition|server|max-q|sxm\d?|hbm\d?e?"
)
"""Words that makers, drivers and shops put beside a card's name."""


def card_named(text: str) -> Card:
    """The card that `--gpu` names: as in `CARDS`, as makers and drivers write it, `cpu`, or an amount of memory.

    Raises:
        UsageError: none of these.
    """
    words = text.strip().lower()
    if words == CPU:
        return this_machine()
    if (key := _key_of(words)) is not None:
        return CARDS[key]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(gi?b?)?", words)
    most = 10_000 if match is not None and match[2] else LARGEST_BARE_GIB
    if match is not None and 0 < float(match[1]) <= most:
        return _of_size(float(match[1]), f"a card with {match[1]} GiB")
    near = [] if match else difflib.get_close_matches(_plain(words), _spellings(), n=3, cutoff=0.5)
    like = list(dict.fromkeys(_spellings()[name] for name in near))
    hint = f"like it are {', '.join(like)}; " if like else ""
    raise UsageError(
        f"--gpu {text}: no such card", f"{hint}known are {', '.join((*CARDS, CPU))}; of others give the memory: 24GiB"
    )


def _key_of(words: str) -> str | None:
    """The key of the card that words name, a size in GB included where it is the card's."""
    if (found := _spellings().get(_plain(words))) is not None:
        return found
    if match := re.fullmatch(r"(.*?\D)[\s_-]*(\d+)\s*gi?b?\b(.*)", words):
        # a card with a size behind its name comes in several, or has this one: 3060 12GB, A100-SXM4-80GB
        name, gib = _plain(match[1] + match[3]), float(match[2])
        family = [key for spelling, key in _spellings().items() if spelling in (name, f"{name}{gib:g}")]
        fitting = [key for key in family if 0.85 * gib <= CARDS[key].memory / GIB <= gib]
        if fitting:
            return fitting[0]
    # a card of its own only where the table says so
    return _key_of(words.replace("pcie", " ")) if "pcie" in words else None


def _spellings() -> dict[str, str]:
    """Every way to write a card's name, without spaces and signs -> its key."""
    found: dict[str, str] = {}
    for key, card in CARDS.items():
        names = {_plain(key), _plain(card.name), re.sub(r"\d+gb$", "", _plain(card.name))}
        for name in sorted(names | {name.removeprefix("rtx") for name in names}):
            found.setdefault(name, key)
    return found | {"6000ada": "rtx6000-ada"}


def _plain(words: str) -> str:
    return re.sub(r"[^a-z0-9]", "", BESIDE_THE_NAME.sub("", words.lower()))


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
    key = _key_of(device.name.lower())
    near = CARDS[key] if key else _of_size(device.memory / GIB, device.name)
    new = device.capability is not None and device.capability >= (8, 0)
    return replace(near, name=device.name, memory=device.memory, capability=device.capability, bfloat16=new)


CPU_TFLOPS = (("amx_bf16", 1.5), ("avx512_bf16", 0.38), ("bf16", 0.2), ("avx512f", 0.19), ("asimd", 0.05), ("", 0.1))
"""What one core is taken to reach at 3 GHz by its widest instructions, 10^12 operations a second: in bfloat16 by the
first three, else in float32."""


def this_machine() -> Card:
    """The processor as a card, with the cores and the memory that this process may use; its speed is a guess from its
    instructions, which a run on it measures."""
    cores, flags = cpu.cores(), {"", *cpu.flags()}
    each = next(tflops for flag, tflops in CPU_TFLOPS if flag in flags)
    memory = min(machine_memory(), memory_limit() or machine_memory())
    source = "a guess from the cores and their instructions"
    return Card(f"CPU, {cores} cores", memory, None, cores * each, 10e9 * cores, 0.5, source, cpu.has_bf16())
