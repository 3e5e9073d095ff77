"""Disks of a chosen size, really mounted (tmpfs); where mounting is not allowed, the tests are skipped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Disk:
    """A mounted tmpfs.

    Attributes:
        folder: where it is mounted.
    """

    folder: Path

    def make_read_only(self) -> None:
        """From now on even root cannot write."""
        _mount("-o", "remount,ro", str(self.folder))

    def resize(self, size: str) -> None:
        """Give it another size, `24m` say; what is on it stays."""
        _mount("-o", f"remount,size={size}", str(self.folder))


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Disk]:
    """A tmpfs of a size for the duration of a block."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here (needs root): {error}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
