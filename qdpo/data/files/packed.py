"""A file's bytes, unpacked where its first bytes say that it is packed, whatever its name says."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qdpo.errors import DataError, InputMissingError, first_line

AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Packing:
    """A way to pack one stream of bytes.

    Attributes:
        name: what people call it.
        unpack: the command that unpacks a file.
        open: opens a file for reading what is packed in it.
    """

    name: str
    unpack: str
    open: Callable[[Path], Any]


def _by_arrow(name: str) -> Callable[[Path], Any]:
    def opened(path: Path) -> Any:
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression=name))

    return opened


PACKINGS = {
    b"\x1f\x8b": Packing("gzip", "gunzip", gzip.open),
    b"BZh": Packing("bzip2", "bunzip2", bz2.open),
    b"\xfd7zXZ\x00": Packing("xz", "unxz", lzma.open),
    b"\x28\xb5\x2f\xfd": Packing("zstd", "unzstd", _by_arrow("zstd")),
    b"\x04\x22\x4d\x18": Packing("lz4", "unlz4", _by_arrow("lz4")),
}
"""By the first bytes of a file."""


def start_of(path: Path, name: str, size: int) -> bytes:
    """The first bytes of a file as they are stored.

    Raises:
        InputMissingError: it may not be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except OSError as error:
        raise InputMissingError(f"{name} cannot be read: {error.strerror}", "check its permissions") from error


def packing_of(start: bytes) -> Packing | None:
    """How a file that begins with these bytes is packed; None where it is not."""
    return next((packing for magic, packing in PACKINGS.items() if start.startswith(magic)), None)


@contextmanager
def unpacked(path: Path, name: str = "") -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked.

    Args:
        path: the file.
        name: what messages call it; its path where there is none.

    Raises:
        DataError: the packed stream is cut off or damaged.
    """
    name = name or str(path)
    packing = packing_of(start_of(path, name, 6))
    try:
        with packing.open(path) if packing else path.open("rb") as stream:
            yield stream
    except EOFError as error:
        raise DataError(f"{name} ends in the middle of its compressed data", AGAIN) from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{name} is damaged: {error}", AGAIN) from error
    except OSError as error:
        # what pyarrow and bz2 raise has no number of the system's
        if error.errno is None and packing:
            cut = "Truncated" in str(error)
            what = "ends in the middle of its compressed data" if cut else f"is damaged: {first_line(error, 200)}"
            raise DataError(f"{name} {what}", AGAIN) from error
        raise DataError(f"{name} cannot be read: {error.strerror or error}", AGAIN) from error
