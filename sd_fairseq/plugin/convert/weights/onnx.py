"""Reads the weights of ONNX graphs, also 8-bit ones, under the names that Hugging Face gives them.

A weight of a product has lost its name in the graph; the node that uses it has the module's path as its own name. An
8-bit weight has one scale and one zero a tensor: float = (q - zero) * scale. Products hold their weights transposed.
"""

from __future__ import annotations

import os
import re
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from torch import Tensor

from sd_fairseq.plugin.guards.errors import InputError

GRAPHS = ("encoder.onnx", "decoder.onnx")
QUANTISED = "_quantized"
# where a module's path inside its stack begins; what stands before it differs from exporter to exporter
PATH = re.compile(r"(block\.\d+\.|final_layer_norm|embed_tokens|shared|lm_head)")
OUTSIDE = ("shared", "lm_head")  # of neither stack
GATHERS, PRODUCTS = ("Gather",), ("MatMulInteger", "MatMul")


def is_package(folder: str) -> bool:
    """Tells whether a folder holds the two graphs of an encoder-decoder."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in GRAPHS)


def read_package(folder: str) -> Dict[str, Tensor]:
    """Reads both graphs, float32.

    Raises:
        InputError: unreadable, or graphs without named weights.
        ModuleNotFoundError: ``onnx`` is not installed.
    """
    weights: Dict[str, Tensor] = {}
    for name in GRAPHS:
        path = os.path.join(folder, name)
        found = dict(read_graph(path, name.split(".")[0]))
        if not found:
            raise InputError(f"{path}: no weights under a T5's names")
        weights.update(found)
    return weights


def read_graph(path: str, stack: str) -> Iterator[Tuple[str, Tensor]]:
    """Yields (Hugging Face's name, weight) of one graph.

    Args:
        path: of the file.
        stack: ``encoder`` or ``decoder``.

    Raises:
        InputError: no ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path).graph
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: truncated or not an ONNX file ({error})") from error
    initialisers = {one.name: one for one in graph.initializer}
    for name in initialisers:
        if name.endswith("layer_norm.weight"):
            yield full_name(name, stack), read_tensor(initialisers, name)
    for node in graph.node:
        module = full_name(node.name.strip("/").rpartition("/")[0].replace("/", "."), stack)
        weight = weight_of(node, initialisers)
        if module and weight:
            value = read_tensor(initialisers, weight)
            yield module + ".weight", value if node.op_type in GATHERS else value.t().contiguous()


def full_name(path: str, stack: str) -> str:
    """Translates a path of the graph to Hugging Face's; empty = not a module of T5."""
    match = PATH.search(path)
    if match is None:
        return ""
    inner = path[match.start() :]
    return inner if inner.startswith(OUTSIDE) else f"{stack}.{inner}"


def weight_of(node: Any, initialisers: Dict[str, Any]) -> Optional[str]:
    """Returns the name of the matrix that a look-up or a product reads, None = it reads none."""
    if node.op_type not in GATHERS + PRODUCTS:
        return None
    name = node.input[0] if node.op_type in GATHERS else node.input[1]
    return name if name in initialisers and len(initialisers[name].dims) == 2 else None


def read_tensor(initialisers: Dict[str, Any], name: str) -> Tensor:
    """Returns an initialiser as float32, 8-bit ones with their scale and zero."""
    value = to_tensor(initialisers[name])
    if not name.endswith(QUANTISED):
        return value.float()
    base = name[: -len(QUANTISED)]
    scale, zero = (to_tensor(initialisers[base + end]) for end in ("_scale", "_zero_point"))
    return (value.float() - zero.float()) * scale.float()


def to_tensor(initialiser: Any) -> Tensor:
    """Copies an initialiser out of the graph."""
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(initialiser).copy())
