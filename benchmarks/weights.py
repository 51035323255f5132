"""The random weights that all candidates load from one file, and the hash by which each shows that it did."""

import hashlib
from typing import Dict, List

import torch


def read(path: str) -> Dict[str, torch.Tensor]:
    """Maps the weights of a fairseq checkpoint into memory; what is not looked at is not read."""
    return dict(torch.load(path, mmap=True, map_location="cpu", weights_only=False)["model"])


def names(weights: Dict[str, torch.Tensor]) -> List[str]:
    """The names of weights proper, in order; ``encoder.version`` is the number of fairseq's format."""
    return sorted(name for name in weights if not name.endswith(".version"))


def checksum(weights: Dict[str, torch.Tensor], dtype: torch.dtype) -> str:
    """Hashes weights by fairseq's names, rounded to ``dtype``."""
    total = hashlib.sha256()
    for name in names(weights):
        value = weights[name].detach().to(dtype).contiguous()
        total.update(f"{name} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
