"""Reads ``.gguf`` files: what they say about a model, and its weights, also in blocks of four- or eight-bit numbers.

A block of Q8_0 is a float16 scale and 32 signed bytes; of Q4_0 and Q4_1 a float16 scale (and minimum) and 16 bytes,
whose low halves are the first 16 numbers.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO, Callable, Dict, List, NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.user_files import open_input

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCK = 32
LONGEST = 2**28  # of a text or a list; a damaged length must not fill the memory


class GGUF(NamedTuple):
    """A file's content.

    Args:
        about: what it says about the model.
        weights: name -> float32, shapes as PyTorch has them.
    """

    about: Dict[str, Any]
    weights: Dict[str, Tensor]


def from_float32(raw: np.ndarray) -> np.ndarray:
    """Plain numbers."""
    return raw.view("<f4")


def from_float16(raw: np.ndarray) -> np.ndarray:
    """Plain numbers of half the size."""
    return raw.view("<f2").astype(np.float32)


def from_q8_0(raw: np.ndarray) -> np.ndarray:
    """Blocks of 34 bytes."""
    blocks = raw.reshape(-1, 2 + BLOCK)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return (blocks[:, 2:].view(np.int8).astype(np.float32) * scale).reshape(-1)


def from_q4(raw: np.ndarray, header: int) -> np.ndarray:
    """Blocks of a header of 2 (Q4_0) or 4 bytes (Q4_1) and 16 bytes of halves."""
    blocks = raw.reshape(-1, header + BLOCK // 2)
    head = blocks[:, :header].copy().view("<f2").astype(np.float32)  # [N, 1 or 2]
    halves = blocks[:, header:]
    numbers = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32)  # [N, 32]
    shifted = (numbers - 8) * head[:, :1] if header == 2 else numbers * head[:, :1] + head[:, 1:]
    return shifted.reshape(-1)


# type -> bytes of a block, numbers in it, reader
KINDS: Dict[int, Tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: (4, 1, from_float32),
    1: (2, 1, from_float16),
    2: (2 + BLOCK // 2, BLOCK, lambda raw: from_q4(raw, 2)),
    3: (4 + BLOCK // 2, BLOCK, lambda raw: from_q4(raw, 4)),
    8: (2 + BLOCK, BLOCK, from_q8_0),
}


def read_gguf(path: str) -> GGUF:
    """Reads a file.

    Raises:
        InputError: truncated, not of this kind, or with weights in a format that is not known here.
    """
    try:
        with open_input(path) as file:
            if file.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            version, tensors, entries = (read_number(file, kind) for kind in "IQQ")
            if version not in (2, 3):
                raise ValueError(f"version {version}, expected 2 or 3")
            about = dict(read_entry(file) for _ in range(check_length(entries)))
            infos = [read_info(file) for _ in range(check_length(tensors))]
            alignment = about.get("general.alignment", 32)
            start = -(-file.tell() // alignment) * alignment
            return GGUF(about, {name: read_weight(file, start, *info) for name, *info in infos})
    except (ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: truncated or not a GGUF file that can be read ({error})") from error


def read_number(file: BinaryIO, kind: str) -> Any:
    """Reads one number of :mod:`struct`'s kind."""
    return struct.unpack("<" + kind, file.read(struct.calcsize(kind)))[0]


def check_length(length: int) -> int:
    """Returns a length that can be.

    Raises:
        ValueError: it cannot.
    """
    if length > LONGEST:
        raise ValueError(f"a length of {length}")
    return length


def read_string(file: BinaryIO) -> str:
    """Reads a text behind its length."""
    return file.read(check_length(read_number(file, "Q"))).decode("utf-8")


def read_value(file: BinaryIO, kind: int) -> Any:
    """Reads a value of one of the format's kinds."""
    if kind == STRING:
        return read_string(file)
    if kind == ARRAY:
        inner, count = read_number(file, "I"), check_length(read_number(file, "Q"))
        return [read_value(file, inner) for _ in range(count)]
    return read_number(file, NUMBERS[kind])


def read_entry(file: BinaryIO) -> Tuple[str, Any]:
    """Reads a name and its value."""
    name = read_string(file)
    return name, read_value(file, read_number(file, "I"))


def read_info(file: BinaryIO) -> Tuple[str, List[int], int, int]:
    """Reads a weight's name, shape (reversed to PyTorch's order), type and place."""
    name = read_string(file)
    shape = [read_number(file, "Q") for _ in range(read_number(file, "I"))][::-1]
    return name, shape, read_number(file, "I"), read_number(file, "Q")


def read_weight(file: BinaryIO, start: int, shape: List[int], kind: int, offset: int) -> Tensor:
    """Reads a weight as float32.

    Raises:
        ValueError: another type, or too few bytes.
    """
    if kind not in KINDS:
        raise ValueError(f"weights of type {kind}, expected one of {', '.join(map(str, KINDS))}")
    size, numbers, read = KINDS[kind]
    count = int(np.prod(shape))
    file.seek(start + offset)
    raw = file.read(count // numbers * size)
    if len(raw) < count // numbers * size:
        raise ValueError(f"{count // numbers * size} bytes of weights expected, {len(raw)} found")
    return torch.from_numpy(np.array(read(np.frombuffer(raw, dtype=np.uint8)), dtype=np.float32)).view(shape)
