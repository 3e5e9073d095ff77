"""What stands between qdpo and a GPU: driver, torch's CUDA, bitsandbytes' libraries, and what does not fit together."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from qdpo.config.schema import RunConfig
from qdpo.errors import UnavailableError, first_line
from qdpo.grammar import counted
from qdpo.hardware import Device, find_device

Version = tuple[int, int]

KERNEL_MODULE = Path("/proc/driver/nvidia/version")
BUS = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", ("0x0300", "0x0302")
"""The maker, and the kinds of device that are graphics cards, as Linux writes them."""
SMI_SECONDS = 20

TORCH_BUILDS = "install the build of torch that pytorch.org/get-started names for this system and its driver"


@dataclass(frozen=True)
class Stack:
    """What is here from the card up.

    Attributes:
        usable: torch computes on a GPU.
        torch: its version.
        cuda: CUDA that torch was built for; None for a build without.
        driver: version of NVIDIA's driver; None where there is none.
        driver_cuda: newest CUDA that the driver's library runs; None where that library cannot be loaded.
        cards: NVIDIA cards on the PCI bus, with a driver or without; 0 where the bus does not show them (WSL).
        visible: `CUDA_VISIBLE_DEVICES`; None where it is not set.
        capability: compute capability of the card that is used; None without one.
        architectures: what torch's kernels are compiled for, such as `sm_80` or `compute_90`.
        bitsandbytes: CUDA versions that bitsandbytes brings a library for.
        error: what torch says when it is told to begin; None where it is content or has no CUDA.
    """

    usable: bool
    torch: str
    cuda: Version | None
    driver: str | None
    driver_cuda: Version | None
    cards: int
    visible: str | None
    capability: Version | None
    architectures: tuple[str, ...]
    bitsandbytes: tuple[Version, ...]
    error: str | None

    def describe(self) -> str:
        """In one line."""
        driver = "no NVIDIA driver" if self.driver is None else f"driver {self.driver}"
        if self.driver_cuda is not None:
            driver += f", which runs CUDA up to {_dotted(self.driver_cuda)}"
        build = "without CUDA" if self.cuda is None else f"for CUDA {_dotted(self.cuda)}"
        return f"{driver}; torch {self.torch} built {build}"


@dataclass(frozen=True)
class Finding:
    """Something that keeps a GPU from being used.

    Attributes:
        message: what it is.
        hint: the way out.
    """

    message: str
    hint: str


# ---------------------------------------------------------------------------------------------------- what is found out


def look() -> Stack:
    """What is here; imports torch."""
    import torch

    usable = torch.cuda.is_available()
    error = None
    if not usable and torch.version.cuda is not None:
        try:
            torch.cuda.init()
        except Exception as problem:  # torch has several kinds for it
            error = first_line(problem, 200)
    return Stack(
        usable=usable,
        torch=str(torch.__version__),
        cuda=None if torch.version.cuda is None else _pair(torch.version.cuda),
        driver=driver_version(),
        driver_cuda=_driver_cuda(),
        cards=cards_on_the_bus(BUS),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        capability=torch.cuda.get_device_capability() if usable else None,
        architectures=tuple(torch.cuda.get_arch_list()),
        bitsandbytes=_bitsandbytes_libraries(),
        error=error,
    )


def driver_version() -> str | None:
    """The version of NVIDIA's driver, from the kernel, or from nvidia-smi where the kernel does not say (WSL)."""
    try:
        return version_in(KERNEL_MODULE.read_text())
    except OSError:
        pass
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def version_in(text: str) -> str | None:
    """The driver's version in what /proc/driver/nvidia/version says."""
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", text)
    return None if found is None else found[1]


def _driver_cuda() -> Version | None:
    number = ctypes.c_int()
    try:
        library = ctypes.CDLL("libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10


def cards_on_the_bus(bus: Path) -> int:
    """NVIDIA's graphics cards among the PCI devices in a folder of sysfs."""

    def read(device: Path, name: str) -> str:
        try:
            return (device / name).read_text().strip()
        except OSError:
            return ""

    devices = list(bus.iterdir()) if bus.is_dir() else []
    return sum(read(d, "vendor") == NVIDIA and read(d, "class").startswith(DISPLAY) for d in devices)


def _bitsandbytes_libraries() -> tuple[Version, ...]:
    """Found by name, without loading any."""
    spec = importlib.util.find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        return ()
    names = (re.search(r"_cuda(\d\d)(\d+)$", path.stem) for path in Path(spec.origin).parent.glob("lib*_cuda*"))
    return tuple(sorted((int(name[1]), int(name[2])) for name in names if name is not None))


def _pair(version: str) -> Version:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


# ------------------------------------------------------------------------------------------------ what does not fit


def misfits(stack: Stack) -> list[Finding]:
    """What is here and does not work together; nothing where there is simply no GPU."""
    here = stack.cards > 0 or stack.driver is not None
    if not stack.usable and here and stack.cuda is None:
        beside = "an NVIDIA card" if stack.driver is None else f"NVIDIA driver {stack.driver}"
        return [Finding(f"torch {stack.torch} is a build without CUDA, beside {beside}", TORCH_BUILDS)]
    found = []
    if not stack.usable and stack.driver is None and stack.driver_cuda is None and stack.cards:
        many = counted(stack.cards, "NVIDIA card")
        found.append(Finding(f"{many} on the bus, and no NVIDIA driver", "install NVIDIA's driver, then restart"))
    if not stack.usable and stack.driver is not None and stack.driver_cuda is None:
        found.append(
            Finding(
                f"NVIDIA driver {stack.driver} is loaded, but its library libcuda.so.1 cannot be",
                "in a container: start it with its GPUs (docker run --gpus all); else install the driver again",
            )
        )
    newest = stack.driver_cuda
    # a driver runs every minor version of its CUDA's major one, and all earlier ones
    if not stack.usable and stack.cuda is not None and newest is not None and newest[0] < stack.cuda[0]:
        driver = "the driver" if stack.driver is None else f"driver {stack.driver}"
        found.append(
            Finding(
                f"torch {stack.torch} was built for CUDA {_dotted(stack.cuda)}, and {driver} runs CUDA up to "
                f"{_dotted(newest)}",
                f"update NVIDIA's driver, or install a build of torch for CUDA {newest[0]}",
            )
        )
    if stack.cuda is not None and stack.capability is not None and not runs_on(stack.architectures, stack.capability):
        found.append(
            Finding(
                f"torch {stack.torch} has no kernels for compute capability {_dotted(stack.capability)} "
                f"(it has {', '.join(stack.architectures)})",
                "install another build of torch: older ones keep older cards, newer ones know newer cards",
            )
        )
    if stack.usable and stack.cuda is not None and stack.cuda[0] not in {version[0] for version in stack.bitsandbytes}:
        has = ", ".join(map(_dotted, stack.bitsandbytes)) or "none"
        found.append(
            Finding(
                f"bitsandbytes has no library for CUDA {_dotted(stack.cuda)}, which torch was built for (it has {has})",
                "install a bitsandbytes that has one, or a build of torch for a CUDA version that it has",
            )
        )
    return found


def runs_on(architectures: tuple[str, ...], capability: Version) -> bool:
    """Whether kernels compiled for some architectures run on a card.

    Machine code (`sm_XY`) runs on its own and later minor versions, PTX (`compute_XY`) on every later card; with the
    suffix `f` both stay within the major version, with `a` on exactly their own (CUDA C++ programming guide,
    "Application compatibility").
    """
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if found is None:
            continue
        version = int(found[2]), int(found[3])
        if version == capability:
            return True
        later = version[0] == capability[0] or (found[1] == "compute" and not found[4])
        if found[4] != "a" and version < capability and later:
            return True
    return False


def absence(stack: Stack) -> Finding:
    """Why torch sees no GPU."""
    if found := misfits(stack):
        return found[0]
    if stack.cuda is not None and stack.visible is not None and (stack.cards or stack.driver is not None):
        names = f"is `{stack.visible}`" if stack.visible.strip() not in ("", "-1") else "hides every GPU"
        return Finding(
            f"CUDA_VISIBLE_DEVICES {names}", "unset CUDA_VISIBLE_DEVICES, or let it name a GPU that is here, such as 0"
        )
    if stack.cards == 0 and stack.driver is None:
        build = "" if stack.cuda is not None else f", and torch {stack.torch} is a build without CUDA"
        return Finding(f"no NVIDIA card and no driver were found{build}", "run it on a machine with a GPU")
    return Finding(stack.error or "torch does not say why", "`nvidia-smi` tells whether the driver sees its cards")


def check_gpu(config: RunConfig, device: Device | None = None) -> None:
    """Refuse a run that is made for a GPU where torch sees none.

    Args:
        config: the run's; `gpu_memory_gib` says whether it is made for a GPU.
        device: what there is to compute on; None looks.

    Raises:
        UnavailableError: there is no GPU.
    """
    if config.gpu_memory_gib is None or (device or find_device()).kind == "cuda":
        return
    why = absence(look())
    card = config.card or f"{config.gpu_memory_gib:g} GiB"
    raise UnavailableError(
        f"{config.name} is made for a GPU ({card}), and torch sees none: {why.message}",
        f"{why.hint} (`qdpo doctor` shows more); --allow-cpu trains on the CPU all the same, which is for small models",
    )
