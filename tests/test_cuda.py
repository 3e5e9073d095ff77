"""What keeps a GPU from being used is named: every mismatch from made-up machines, the absence from this one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qdpo import cuda
from qdpo.config.resolve import resolve
from qdpo.cuda import Stack, absence, cards_on_the_bus, look, misfits, runs_on, version_in
from qdpo.errors import UnavailableError
from qdpo.hardware import Device

WHEEL = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
GOOD = Stack(
    usable=True,
    torch="2.13.0+cu130",
    cuda=(13, 0),
    driver="580.65.06",
    driver_cuda=(13, 0),
    cards=1,
    visible=None,
    capability=(8, 6),
    architectures=WHEEL,
    bitsandbytes=((11, 8), (12, 8), (13, 0)),
    error=None,
)
UNSEEN = replace(GOOD, usable=False, capability=None, architectures=(), error="No CUDA GPUs are available")
NOTHING = replace(UNSEEN, driver=None, driver_cuda=None, cards=0, error="Found no NVIDIA driver on your system.")
CPU = Device("cpu", "a processor", None, 8 << 30)


def test_a_machine_where_all_fits_has_no_misfit() -> None:
    assert misfits(GOOD) == []
    # a driver runs later minor versions than its own, and a library of another minor version serves
    assert misfits(replace(GOOD, cuda=(13, 4))) == []
    assert GOOD.describe() == "driver 580.65.06, which runs CUDA up to 13.0; torch 2.13.0+cu130 built for CUDA 13.0"


def test_a_machine_without_any_gpu_has_no_misfit() -> None:
    assert misfits(NOTHING) == []
    assert misfits(replace(NOTHING, torch="2.13.0+cpu", cuda=None, error=None)) == []


MISFITS = {
    "a build without CUDA, beside a card": (
        replace(UNSEEN, torch="2.13.0+cpu", cuda=None, error=None),
        "torch 2.13.0+cpu is a build without CUDA, beside NVIDIA driver 580.65.06",
        "install the build of torch",
    ),
    "the same without a driver": (
        replace(NOTHING, torch="2.13.0+cpu", cuda=None, cards=1),
        "torch 2.13.0+cpu is a build without CUDA, beside an NVIDIA card",
        "install the build of torch",
    ),
    "no driver": (replace(NOTHING, cards=2), "2 NVIDIA cards on the bus, and no NVIDIA driver", "install NVIDIA's"),
    "a container without its GPUs": (
        replace(UNSEEN, driver_cuda=None),
        "NVIDIA driver 580.65.06 is loaded, but its library libcuda.so.1 cannot be",
        "--gpus all",
    ),
    "an old driver": (
        replace(UNSEEN, driver="535.104.05", driver_cuda=(12, 2)),
        "torch 2.13.0+cu130 was built for CUDA 13.0, and driver 535.104.05 runs CUDA up to 12.2",
        "update NVIDIA's driver, or install a build of torch for CUDA 12",
    ),
    "an old driver of unknown version": (
        replace(UNSEEN, driver=None, driver_cuda=(12, 2)),
        "and the driver runs CUDA up to 12.2",
        "update NVIDIA's driver",
    ),
    "an old card": (
        replace(GOOD, capability=(7, 0)),
        "torch 2.13.0+cu130 has no kernels for compute capability 7.0 (it has sm_75, ",
        "another build of torch",
    ),
    "no library of bitsandbytes": (
        replace(GOOD, bitsandbytes=((11, 8), (12, 8))),
        "bitsandbytes has no library for CUDA 13.0, which torch was built for (it has 11.8, 12.8)",
        "install a bitsandbytes that has one",
    ),
    "no library of bitsandbytes at all": (replace(GOOD, bitsandbytes=()), "(it has none)", "install a bitsandbytes"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_together_is_named_with_its_remedy(name: str) -> None:
    stack, message, hint = MISFITS[name]
    (found,) = misfits(stack)
    assert message in found.message
    assert hint in found.hint
    if not stack.usable:
        assert absence(stack) == found


@pytest.mark.parametrize(
    ("stack", "message", "hint"),
    [
        (replace(UNSEEN, visible=""), "CUDA_VISIBLE_DEVICES hides every GPU", "unset"),
        (replace(UNSEEN, visible="-1"), "CUDA_VISIBLE_DEVICES hides every GPU", "unset"),
        (replace(UNSEEN, visible="7"), "CUDA_VISIBLE_DEVICES is `7`", "a GPU that is here"),
        (NOTHING, "no NVIDIA card and no driver were found", "on a machine with a GPU"),
        (replace(NOTHING, visible=""), "no NVIDIA card and no driver were found", "on a machine with a GPU"),
        (replace(NOTHING, torch="2.13.0+cpu", cuda=None), "2.13.0+cpu is a build without CUDA", "on a machine"),
        (UNSEEN, "No CUDA GPUs are available", "nvidia-smi"),
    ],
)
def test_why_there_is_no_gpu(stack: Stack, message: str, hint: str) -> None:
    assert misfits(stack) == []
    assert message in absence(stack).message
    assert hint in absence(stack).hint


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_80",), (8, 0), True),
        (("sm_80",), (8, 9), True),  # a later minor version
        (("sm_86",), (8, 0), False),  # an earlier one
        (("sm_80",), (9, 0), False),  # another major one
        (("compute_80",), (9, 0), True),  # PTX goes up
        (("compute_90",), (8, 9), False),  # and not down
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),  # its own only
        (("compute_90a",), (12, 0), False),
        (("sm_100f",), (10, 3), True),  # its family
        (("compute_100f",), (12, 0), False),
        (("sm_120",), (12, 0), True),  # two digits of major version
        (("gfx90a",), (9, 0), False),
        ((), (8, 0), False),
    ],
)
def test_which_cards_kernels_run_on(architectures: tuple[str, ...], capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(architectures, capability) is runs


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12",
            "535.104.05",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n",
            "580.65.06",
        ),
        ("something else", None),
    ],
)
def test_the_driver_says_its_version(text: str, version: str | None) -> None:
    assert version_in(text) == version


def test_cards_on_the_bus_are_counted(tmp_path: Path) -> None:
    devices = {
        "0000:00:02.0": ("0x8086", "0x030000"),  # another maker's
        "0000:01:00.0": ("0x10de", "0x030000"),
        "0000:01:00.1": ("0x10de", "0x040300"),  # the sound of that card
        "0000:41:00.0": ("0x10de", "0x030200"),  # a card without a socket for a screen
    }
    for name, (vendor, kind) in devices.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    (tmp_path / "gone").mkdir()
    assert cards_on_the_bus(tmp_path) == 2
    assert cards_on_the_bus(tmp_path / "nowhere") == 0


def test_this_machine() -> None:
    stack = look()
    assert stack.torch == torch.__version__
    assert stack.usable == torch.cuda.is_available()
    assert (stack.cuda is None) == (torch.version.cuda is None)
    # of the installed bitsandbytes, whatever the machine
    assert (12, 8) in stack.bitsandbytes
    if not stack.usable:
        assert absence(stack).message


def test_a_preset_that_is_made_for_a_gpu_is_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "look", lambda: NOTHING)
    config = resolve("garrulus-t4").config
    with pytest.raises(UnavailableError) as raised:
        cuda.check_gpu(config, CPU)
    assert raised.value.message.startswith(
        "garrulus-t4 is made for a GPU (NVIDIA T4 (16 GB)), and torch sees none: no "
    )
    assert "--allow-cpu" in str(raised.value.hint)
    assert raised.value.exit_code == 69
    cuda.check_gpu(config, Device("cuda", "a card", (7, 5), 15 << 30))
    cuda.check_gpu(resolve("quickstart").config, CPU)
    cuda.check_gpu(resolve("garrulus-t4", ["gpu_memory_gib=null"]).config, CPU)
