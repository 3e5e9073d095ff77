"""What is said of this machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
from qdpo.hardware import resident_peak
before = resident_peak()
block = b"\\1" * 200_000_000
print(before, resident_peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count as they should")
def test_the_peak_of_a_process_is_its_own_and_not_that_of_its_parent() -> None:
    """A run that a notebook with gigabytes in memory starts does not report them."""
    large = b"\1" * 400_000_000
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < len(large) // 2
    assert 200_000_000 <= after - before < 250_000_000
