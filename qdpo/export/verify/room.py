"""Room for tensors that are larger than what may be kept in memory: on the card, in memory, or in files."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from pathlib import Path

import torch

from qdpo.errors import DiskError
from qdpo.files import explained, free_bytes
from qdpo.model.stream_memory import HELD_BYTES

SHARE_OF_CARD = 4
"""A tensor is put on the card when it takes no more than one in so many of its free bytes."""


class Room:
    """Gives memory for tensors.

    Args:
        folder: where the files go. They have no names, so nothing is left when the process ends, however it does.
        held: bytes that may be kept in the host's memory; what is more lies in files.
    """

    def __init__(self, folder: Path, held: int = HELD_BYTES) -> None:
        self._folder, self._left = folder, held

    def take(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for [rows, columns], its content undefined: on the device, or on the CPU where that has no room.

        Raises:
            DiskError: the disk has no room for a file.
        """
        nbytes = math.prod((rows, columns)) * dtype.itemsize
        if device.type == "cuda" and nbytes * SHARE_OF_CARD <= free_on(device):
            return torch.empty(rows, columns, dtype=dtype, device=device)
        if nbytes <= self._left or not nbytes:
            self._left -= nbytes
            return torch.empty(rows, columns, dtype=dtype)
        with explained(self._folder, nbytes), tempfile.TemporaryFile(dir=self._folder) as stream:
            if hasattr(os, "posix_fallocate"):  # a full disk is told of here, not by a signal later
                os.posix_fallocate(stream.fileno(), 0, nbytes)
            stream.truncate(nbytes)
            mapped = mmap.mmap(stream.fileno(), nbytes)
        return torch.frombuffer(mapped, dtype=dtype).view(rows, columns)


def free_on(card: torch.device) -> int:
    """Bytes of a card that tensors may still take, those among them that torch holds unused."""
    unused = torch.cuda.memory_reserved(card) - torch.cuda.memory_allocated(card)
    return int(torch.cuda.mem_get_info(card)[0]) + unused


def require_room(folder: Path, nbytes: int) -> None:
    """Make sure that a disk has room for the same export of the bare base.

    Raises:
        DiskError: it has not.
    """
    if (free := free_bytes(folder)) < nbytes:
        raise DiskError(
            f"the export is compared with the same export of the bare base, which takes {nbytes:,} bytes beside it for "
            f"a while; {free:,} are free",
            "free some space, or skip it with --no-verify and run `qdpo verify` later",
        )
