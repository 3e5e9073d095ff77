"""The processor: threads by limits and load, bfloat16 by a measurement, memory by a process' own pages."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qdpo import cpu
from qdpo.hardware import Device, choose_dtype, mixed_precision

CPU = Device("cpu", "a processor", None, 1 << 34)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of 8 cores without limits, on which nothing else runs."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpu, "others_computing", lambda: 0)
    monkeypatch.setattr(cpu, "cpu_quota", lambda: None)
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: 8)
    return monkeypatch


class TestThreads:
    def test_an_idle_machine_keeps_what_torch_takes_and_says_nothing(self, idle: pytest.MonkeyPatch) -> None:
        assert cpu.choose_threads(8) == cpu.Threads(None)

    def test_cores_that_others_use_are_left_to_them_with_a_word(self, idle: pytest.MonkeyPatch) -> None:
        idle.setattr(cpu, "others_computing", lambda: 6)
        found = cpu.choose_threads(8)
        assert found.count == 2
        assert found.reason is not None
        assert "2 of 8 threads" in found.reason
        assert "OMP_NUM_THREADS=8" in found.reason
        assert "last digits" in found.reason
        idle.setattr(cpu, "others_computing", lambda: 50)
        assert cpu.choose_threads(8).count == 1

    def test_others_beside_which_there_is_room_change_nothing(self, idle: pytest.MonkeyPatch) -> None:
        idle.setattr(cpu, "others_computing", lambda: 4)
        assert cpu.choose_threads(4) == cpu.Threads(None)

    def test_the_limit_of_a_control_group_holds(self, idle: pytest.MonkeyPatch) -> None:
        idle.setattr(cpu, "cpu_quota", lambda: 2.5)
        assert cpu.choose_threads(8).count == 2

    def test_what_the_user_says_holds_and_a_crowd_is_told(self, idle: pytest.MonkeyPatch) -> None:
        idle.setenv("OMP_NUM_THREADS", "8")
        assert cpu.choose_threads(8) == cpu.Threads(None)
        idle.setattr(cpu, "others_computing", lambda: 6)
        found = cpu.choose_threads(8)
        assert found.count is None
        assert found.reason is not None
        assert "8 threads, as OMP_NUM_THREADS says" in found.reason

    def test_a_run_that_goes_on_keeps_its_number(self, idle: pytest.MonkeyPatch) -> None:
        idle.setattr(cpu, "others_computing", lambda: 6)
        assert cpu.choose_threads(8, began_with=4).count == 4
        idle.setattr(cpu, "cpu_quota", lambda: 2.0)
        assert cpu.choose_threads(8, began_with=4).count == 2  # it cannot

    def test_quotas_are_read_from_every_group_above(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        inner = tmp_path / "a" / "b"
        inner.mkdir(parents=True)
        (inner / "cpu.max").write_text("max 100000\n")
        (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
        own = tmp_path / "cgroup"
        own.write_text("0::/a/b\n")
        monkeypatch.setattr(cpu, "CGROUPS", tmp_path)
        monkeypatch.setattr(cpu, "OWN_CGROUP", own)
        assert cpu.cpu_quota() == 1.5
        (tmp_path / "a" / "cpu.max").write_text("max 100000\n")
        assert cpu.cpu_quota() is None

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
    def test_a_process_that_computes_is_seen(self) -> None:
        before = cpu.others_computing()
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
        try:
            time.sleep(0.5)
            assert cpu.others_computing() >= min(before, 4) + 4
        finally:
            for process in busy:
                process.kill()
                process.wait()


class TestDtype:
    @pytest.fixture(autouse=True)
    def measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu, "has_bf16", lambda: True)
        monkeypatch.setattr(cpu, "layer_flops", lambda: (100e9, 390e9))

    def test_bfloat16_is_taken_where_it_is_clearly_faster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dtype, reason = choose_dtype("auto", CPU, 14 << 30)
        assert dtype == torch.bfloat16
        assert "390 GFLOP/s, float32 100" in reason
        monkeypatch.setattr(cpu, "layer_flops", lambda: (100e9, 125e9))
        assert choose_dtype("auto", CPU)[0] == torch.float32

    def test_a_small_model_and_a_processor_without_it_are_not_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu, "layer_flops", lambda: pytest.fail("measured"))
        assert choose_dtype("auto", CPU, 7_000_000)[0] == torch.float32
        monkeypatch.setattr(cpu, "has_bf16", lambda: False)
        assert choose_dtype("auto", CPU)[0] == torch.float32
        assert choose_dtype("bfloat16", CPU)[0] == torch.bfloat16

    def test_bfloat16_is_autocast_on_a_cpu_as_on_a_card(self) -> None:
        with mixed_precision(CPU, torch.bfloat16)():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        with mixed_precision(CPU, torch.float32)():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_layer_is_measured_soon() -> None:
    import bitsandbytes.functional  # noqa: F401 - takes its own time

    cpu.layer_flops.cache_clear()
    began = time.monotonic()
    slow, fast = cpu.layer_flops()
    assert time.monotonic() - began < 5  # half a second on a machine that does nothing else
    assert slow > 0
    assert fast > 0
    assert cpu.layer_flops() == (slow, fast)


MAPPED = """
import mmap, sys, time
from qdpo import hardware
size = 200_000_000
with open(sys.argv[1], "w+b") as stream:
    stream.truncate(size)
    with mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        hardware.begin_own_peak()
        before, resident = hardware.own_peak(), hardware.resident_peak()
        assert sum(mapped[i] for i in range(0, size, 4096)) == 0
        assert hardware.resident_peak() - resident > size / 2
        assert hardware.own_peak() - before < size / 10
block = bytearray(b"1") * size
time.sleep(0.2)  # seen by a look in between
del block
assert hardware.own_peak() - before > size / 2
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells own pages from mapped ones")
def test_mapped_files_are_no_memory_of_the_process(tmp_path: Path) -> None:
    # in a process of its own: what an earlier test has had in memory would hide the pages
    subprocess.run([sys.executable, "-c", MAPPED, str(tmp_path / "mapped")], check=True)


GLIBC = """
import ctypes, sys
from pathlib import Path
from qdpo import allocator
if sys.argv[1] == "returned":
    allocator.return_freed_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
def block(size):
    place = libc.malloc(size)
    ctypes.memset(place, 1, size)
    return place
libc.free(block(31 << 20))  # from here on glibc takes such blocks from its heap
before, held = resident(), []
blocks = []
for _ in range(16):
    blocks.append(block(16 << 20))
    held.append(block(100_000))  # what stays in use between them
for place in blocks:
    libc.free(place)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_blocks_go_back_to_the_system() -> None:
    def left(how: str) -> int:
        command = [sys.executable, "-c", GLIBC, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert left("returned") < 16 << 20
    assert left("kept") > 128 << 20
