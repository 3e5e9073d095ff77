"""A long run needs no more memory at its end than at its beginning."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
from faults.preloaded import Process
from faults.runs import World, steps_done

STEPS = 1000


def memory(process: Process) -> int:
    """Resident bytes of a process; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:")), 0)


@pytest.mark.soak
def test_a_thousand_steps_in_flat_memory(here: World, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = (f"train.max_steps={STEPS}", "train.save_every=50", "train.eval_every=100", "train.log_every=5")
    process = here.train(folder, *settings)
    readings: list[tuple[int, int]] = []
    while (resident := memory(process)) > 0:
        readings.append((steps_done(folder), resident))
        time.sleep(0.25)
    assert process.wait() == 0, process.said()
    # the first fifth fills caches and allocators; after it nothing may grow
    early = statistics.median(size for step, size in readings if STEPS * 0.2 <= step < STEPS * 0.4)
    late = statistics.median(size for step, size in readings if STEPS * 0.8 <= step < STEPS)
    growth = late - early
    mib = 1 << 20
    print(
        f"\n{STEPS} steps, {len(readings)} readings: {early / mib:.1f} MiB early, {late / mib:.1f} MiB late, ", end=""
    )
    print(f"{growth / mib:+.1f} MiB; peak {max(size for _, size in readings) / mib:.1f} MiB")
    assert growth < 8 * mib
