"""A full disk: refused before the start, or an explained end in the middle; what was saved stays whole and goes on."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.mounts import Disk, mounted
from faults.preloaded import Process
from faults.runs import World, assert_whole, staging, steps_saved, wait_for

from qdpo.errors import DiskError
from qdpo.files import explained, free_bytes, manifest_problems, require_space, size_of, staged_folder
from qdpo.training.stages.disk import check_disk

STEPS = 40
SIZE = "24m"

TOO_SMALL = [64, 256, 512, 768, 1024]
"""KiB of disks that the run does not fit on; some have room for its first files, some for its first checkpoint."""

LEFT = [0, 4, 8, 16, 32, 48, 64, 96, 112, 128, 160, 192, 224, 256, 288]
"""KiB that somebody leaves free on the disk of a run that has begun: a checkpoint has about 160."""

SAMPLE = (TOO_SMALL[1], LEFT[0], LEFT[8])


def in_ci(sizes: list[int]) -> list[object]:
    """The sizes as parameters, those outside the sample for the long test only."""
    return [pytest.param(size, marks=() if size in SAMPLE else pytest.mark.soak) for size in sizes]


def assert_explained(process: Process, disk: Disk) -> None:
    """Exit code 74, and a message with the path, the bytes needed and the bytes free."""
    code, said = process.wait(), process.said()
    assert code == 74, said
    assert "Traceback" not in said
    error = next(line for line in said.splitlines() if line.startswith("error: "))
    assert str(disk.folder) in error
    needed = re.search(r"([\d,]+) bytes needed|needs ([\d,]+) bytes", error)
    assert needed, error
    free = re.search(r"([\d,]+) bytes (are )?free", error)
    assert free, error
    assert int((needed[1] or needed[2]).replace(",", "")) > 0
    assert "\nhint: " in said


@pytest.mark.parametrize("kib", in_ci(TOO_SMALL))
def test_a_disk_that_is_too_small_is_refused_before_the_first_step(kib: int, here: World, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", f"{kib}k") as disk:
        folder = disk.folder / "run"
        assert_explained(here.train(folder, f"train.max_steps={STEPS}"), disk)
        assert not (folder / "metrics.jsonl").exists(), "no step was made"
        assert staging(folder) == []
        disk.resize(SIZE)
        resumed = (
            here.resume(folder)
            if (folder / "config.yaml").is_file()
            else here.train(folder, f"train.max_steps={STEPS}")
        )
        assert resumed.wait() == 0, resumed.said()
        assert_whole(folder, here.straight(f"train.max_steps={STEPS}"), STEPS)


@pytest.mark.parametrize("kib", in_ci(LEFT))
def test_a_disk_that_fills_up_loses_nothing_that_was_saved(kib: int, here: World, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", SIZE) as disk:
        folder = disk.folder / "run"
        process = here.train(folder, f"train.max_steps={STEPS}", "train.keep=8")
        wait_for(lambda: steps_saved(folder) != [], process)
        fill(disk, kib << 10)
        assert_explained(process, disk)
        assert staging(folder) == []
        saved = steps_saved(folder)
        assert saved
        assert all(manifest_problems(folder / "checkpoints" / f"step-{step:06d}") == [] for step in saved)
        (disk.folder / "ballast").unlink()
        resumed = here.resume(folder)
        assert resumed.wait() == 0, resumed.said()
        assert f"resuming from step-{saved[-1]:06d}" in resumed.said()
        assert_whole(folder, here.straight(f"train.max_steps={STEPS}"), STEPS)


def fill(disk: Disk, left: int) -> None:
    """Write a file until only so many bytes are free, and go on doing so while the run frees some."""
    with (disk.folder / "ballast").open("wb", buffering=0) as ballast:
        for _ in range(3):
            while (free := free_bytes(disk.folder)) > left:
                try:
                    ballast.write(b"\0" * min(free - left, 1 << 20))
                except OSError:
                    break
            time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------- the small pieces


def test_a_library_in_rust_that_meets_a_full_disk_is_explained_too(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with mounted(tmp_path / "disk", "64k") as disk:
        final = disk.folder / "folder"
        said = r"800,000 bytes needed, [\d,]+ bytes free"
        with pytest.raises(DiskError, match=said) as caught, staged_folder(final, needed=800_000) as staged:
            save_file({"a": torch.zeros(200_000)}, staged / "a.safetensors")
        assert str(final) in caught.value.message
        assert list(disk.folder.iterdir()) == []


def test_an_error_that_is_not_the_disk_s_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), explained(tmp_path):
        raise ZeroDivisionError


def test_the_preflight_asks_for_a_fifth_more_than_is_written(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "1200k") as disk:
        free = free_bytes(disk.folder)
        require_space(disk.folder, int(free / 1.2) - 1, "hint")
        with pytest.raises(DiskError, match=rf"needs [\d,]+ bytes \(1\.2 x [\d,]+\), {free:,} bytes are free"):
            require_space(disk.folder, int(free / 1.2) + 4096, "hint")


def test_a_disk_with_room_for_the_run_but_not_for_its_export_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "4m") as disk:
        check_disk(disk.folder, needed=1 << 20, export=1 << 20)
        with pytest.raises(DiskError, match=rf"needs [\d,]+ bytes \(1\.2 x {(1 << 20) + (3 << 20):,}\)") as caught:
            check_disk(disk.folder, needed=1 << 20, export=3 << 20)
        assert "train.room_for_export=false" in str(caught.value.hint)
        (disk.folder / "export").mkdir()
        (disk.folder / "export" / "merged").write_bytes(b"\0" * (2 << 20))
        check_disk(disk.folder, needed=1 << 19, export=2 << 20)  # what is exported already needs no more room


def test_the_room_for_an_export_can_be_left_out(here: World, tmp_path: Path) -> None:
    """The tiny base is made to look like one of 4 GB, the disk has 24 MB."""
    script = tmp_path / "large.py"
    script.write_text(
        "import sys\n"
        "from qdpo.cli.main import main\n"
        "from qdpo.training import run\n"
        "check = run.check_room\n"
        "def large(run, *others):\n"
        "    run.record['base']['parameters'] = 2 * 10**9\n"
        "    check(run, *others)\n"
        "run.check_room = large\n"
        "sys.exit(main())\n"
    )
    with mounted(tmp_path / "disk", SIZE) as disk:
        for setting, code in (("true", 74), ("false", 0)):
            command = [sys.executable, str(script), "train", "--preset", str(here.tiny.preset), "--run-dir"]
            overrides = ["--set", "train.max_steps=2", "--set", f"train.room_for_export={setting}"]
            done = subprocess.run(
                [*command, str(disk.folder / setting), *overrides], capture_output=True, text=True, timeout=120
            )
            assert done.returncode == code, done.stderr
            assert ("hint: 3.7 GiB of that are for a merged 16-bit export" in done.stderr) == bool(code)


@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "adamw_8bit"])
def test_the_estimate_is_what_a_run_writes(optim: str, here: World, tmp_path: Path) -> None:
    """The smallest disk that is accepted is large enough, and not twice as large as what the run left on it."""
    settings = (f"train.max_steps={STEPS}", f"train.optim={optim}", "lora.r=64")
    with mounted(tmp_path / "small", "300k") as disk:
        refused = here.train(disk.folder / "run", *settings)
        assert refused.wait() == 74
        wanted = re.search(r"\(1\.2 x ([\d,]+)\)", refused.said())
        assert wanted, refused.said()
    needed = int(wanted[1].replace(",", ""))
    folder = tmp_path / "run"
    process = here.train(folder, *settings)
    assert process.wait() == 0, process.said()
    checkpoint = size_of(folder / "checkpoints") // len(steps_saved(folder))
    peak = size_of(folder) + checkpoint  # one more while it is written
    assert peak <= needed < 2 * peak
