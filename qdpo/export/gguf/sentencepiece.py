"""Reading a sentencepiece `tokenizer.model`, which is a protocol buffer, without the sentencepiece package.

Only what a GGUF needs is read: the pieces with scores and types, the algorithm, and whether a space is put in front
(https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qdpo.errors import InputMissingError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2


@dataclass(frozen=True)
class Pieces:
    """A sentencepiece vocabulary: text, score and type of each piece, and whether text gets a space in front."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    add_prefix_space: bool


def read_pieces(path: Path) -> Pieces:
    """Read a tokenizer.model.

    Raises:
        InputMissingError: it is damaged, or not a BPE model.
    """
    texts, scores, types = [], [], []
    algorithm, prefix = 1, True
    try:
        for field, value in _fields(path.read_bytes()):
            if field == 1 and isinstance(value, bytes):
                piece = dict(_fields(value))
                texts.append(_as_bytes(piece[1]).decode())
                scores.append(struct.unpack("<f", _as_bytes(piece.get(2, bytes(4))))[0])
                types.append(int(piece.get(3, NORMAL)))
            elif field == 2 and isinstance(value, bytes):
                algorithm = int(dict(_fields(value)).get(3, 1))
            elif field == 3 and isinstance(value, bytes):
                prefix = bool(dict(_fields(value)).get(3, 1))
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise InputMissingError(f"{path} is not a whole sentencepiece model: {error!r}") from error
    if not texts or algorithm != BPE:
        raise InputMissingError(f"{path} has {len(texts)} pieces and is of type {algorithm}; expected a BPE model (2)")
    return Pieces(texts, scores, types, prefix)


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"expected bytes, found {value}")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and raw value of a protocol buffer message: integers for varints, bytes for the rest."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield field, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"a field ends {position + size - len(data)} bytes after the message")
        yield field, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
