"""Reads a folder of Hugging Face's: ``config.json`` and weights as safetensors or ``.bin``, in one file or several."""

from __future__ import annotations

import os
import pickle
from typing import Any, Dict, List

import torch
from torch import Tensor

from sd_fairseq.plugin.convert.weights.safetensors import read_safetensors
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.text.identity_dictionary import EOS, PAD
from sd_fairseq.user_files import read_json_object

FILES = ("model.safetensors", "pytorch_model.bin")


def read_config(folder: str) -> Dict[str, Any]:
    """Reads ``config.json``.

    Raises:
        InputError: no such file, or no JSON object.
    """
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        raise InputError(f"{folder}: no config.json")
    return read_json_object(path)


def read_weights(folder: str) -> Dict[str, Tensor]:
    """Reads all weights of a folder.

    Raises:
        InputError: no weights, or unreadable ones.
    """
    weights: Dict[str, Tensor] = {}
    for path in weight_files(folder):
        weights.update(read_safetensors(path) if path.endswith(".safetensors") else read_bin(path))
    return weights


def weight_files(folder: str) -> List[str]:
    """Lists the files that hold the weights, safetensors before ``.bin``.

    Raises:
        InputError: there are none, or one that the index names is missing.
    """
    for name in FILES:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return [path]
        if os.path.isfile(path + ".index.json"):
            places = read_json_object(path + ".index.json").get("weight_map")
            if not isinstance(places, dict) or not all(isinstance(part, str) for part in places.values()):
                raise InputError(f"{path}.index.json: no 'weight_map' of weights and files")
            parts = sorted(set(places.values()))
            missing = [part for part in parts if not os.path.isfile(os.path.join(folder, part))]
            if missing:
                raise InputError(f"{path}.index.json: names {missing[0]}, which is not there")
            return [os.path.join(folder, part) for part in parts]
    raise InputError(f"{folder}: no weights, expected {' or '.join(FILES)}")


def read_bin(path: str) -> Dict[str, Tensor]:
    """Reads a ``.bin`` file; nothing in it is run.

    Raises:
        InputError: truncated, or with more than tensors in it.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise InputError(f"{path}: truncated or not a file of weights ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}, expected a table of tensors")
    return {name: value for name, value in found.items() if torch.is_tensor(value)}


def find_parts(config: Dict[str, Any], rows: int, end: int) -> Dict[str, int]:
    """Returns the ids of end and padding; padding is added behind the last row where the model has none of its own.

    Args:
        config: ``config.json``.
        rows: of the embedding.
        end: where the configuration does not say.
    """
    found = config.get("eos_token_id", end)
    found = found[0] if isinstance(found, list) else end if found is None else found
    padding = config.get("pad_token_id")
    taken = padding is None or not 0 <= padding < rows or padding == found
    return {EOS: found, PAD: rows if taken else padding}
