"""Reads and writes ``.safetensors``: a length, a JSON table of names, types, shapes and places, then the values."""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO, Dict

import torch
from torch import Tensor

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.user_files import open_input

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: str) -> Dict[str, Tensor]:
    """Reads all tensors of a file.

    Raises:
        InputError: truncated, or not of this kind.
    """
    try:
        with open_input(path) as file:
            size = int.from_bytes(file.read(8), "little")
            if size > os.path.getsize(path):
                raise ValueError("its table is longer than the file")
            table: Dict[str, Any] = json.loads(file.read(size))
            values = bytearray(file.read())
        table.pop("__metadata__", None)
        return {name: _tensor(values, entry) for name, entry in table.items()}
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error})") from error


def _tensor(values: bytearray, entry: Dict[str, Any]) -> Tensor:
    start, end = entry["data_offsets"]
    dtype, shape = TYPES[entry["dtype"]], entry["shape"]
    if end > len(values):
        raise ValueError(f"{end} bytes of values expected, {len(values)} found")
    if start == end:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(values[start:end], dtype=dtype).reshape(shape).clone()


def write_safetensors(stream: BinaryIO, tensors: Dict[str, Tensor]) -> None:
    """Writes tensors, by name, as PyTorch's."""
    names, end = {dtype: name for name, dtype in TYPES.items()}, 0
    table: Dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, value in sorted(tensors.items()):
        begin, end = end, end + value.numel() * value.element_size()
        table[name] = {"dtype": names[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    head = json.dumps(table).encode("utf-8")
    head += b" " * (-len(head) % 8)  # readers map the values into memory
    stream.write(len(head).to_bytes(8, "little") + head)
    for _, value in sorted(tensors.items()):
        stream.write(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
