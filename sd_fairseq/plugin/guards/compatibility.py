"""What fairseq needs to run beside current torch and numpy; nothing in fairseq itself is changed.

torch 2.6 made `torch.load` refuse all but listed types. fairseq's checkpoints hold a few plain containers that are not
on torch's list; naming them keeps the protection, where `weights_only=False` would give it up.
"""

import argparse
import collections
import importlib
import importlib.util
import sys
import types
import typing
import warnings
from typing import Any, List, Tuple

import numpy
import torch

from sd_fairseq.plugin.guards.errors import fairseq_command

# One letter a data type, as numpy names them; "O", arbitrary objects, stays out.
_NUMPY_KINDS = "?bhilqBHILQefdgFDGSUVMm"
_OLD_METERS = ("AverageMeter", "TimeMeter", "StopwatchMeter", "SumMeter")
_OMEGACONF_TYPES = {
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.nodes": ("AnyNode", "BooleanNode", "FloatNode", "IntegerNode", "StringNode"),
}
_PLAIN_BUILTINS = (bool, dict, float, int, list, str, tuple)


def prepare_environment() -> None:
    """Make checkpoints of fairseq loadable under torch >= 2.6 and give numpy back the `compat` that fairseq looks up.

    Calling it again changes nothing.
    """
    if loads_weights_only():
        torch.serialization.add_safe_globals(list_safe_types())
    if not hasattr(numpy, "compat"):
        numpy.compat = types.SimpleNamespace(long=int)


def quieten_foreign_warnings() -> None:
    """Hides what hydra, torch and fairseq say of each other at every start of a fairseq command, and no user can mend.

    Nothing is hidden where the user asks for warnings (``python -W``, ``PYTHONWARNINGS``), or in another program.
    """
    if sys.warnoptions or fairseq_command(sys.argv[0] if sys.argv else "") is None:
        return
    warnings.filterwarnings("ignore", module=r"hydra\.")
    warnings.filterwarnings("ignore", message=r"\s*'config' is validated against ConfigStore schema")
    warnings.filterwarnings("ignore", message=r"'pin_memory' argument is set as true but no accelerator")
    warnings.filterwarnings("ignore", message=r"`?torch\.cuda\.amp\.", category=FutureWarning)


def loads_weights_only() -> bool:
    """Tell whether `torch.load` of this torch refuses unlisted types by default (2.6 and later)."""
    return hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")


def list_safe_types() -> List[Tuple[Any, str]]:
    """List what a fairseq checkpoint may hold beside tensors: containers of plain values that do nothing when loaded.

    Returns:
        Pairs of a type or function and the full name that pickles use for it.
    """
    return [
        (argparse.Namespace, "argparse.Namespace"),
        (collections.defaultdict, "collections.defaultdict"),
        (typing.Any, "typing.Any"),
        *((kind, "builtins." + kind.__name__) for kind in _PLAIN_BUILTINS),
        *_numpy_types(),
        *_fairseq_meters(),
        *_broadcast_placeholders(),
        *_omegaconf_types(),
    ]


def _numpy_types() -> List[Tuple[Any, str]]:
    """What rebuilds arrays, scalars and data types, under the module names of numpy 1 and numpy 2."""
    core = "numpy._core" if _has_module("numpy._core.multiarray") else "numpy.core"
    multiarray = importlib.import_module(core + ".multiarray")
    found = [(numpy.ndarray, "numpy.ndarray"), (numpy.dtype, "numpy.dtype")]
    for name in ("_reconstruct", "scalar"):
        if hasattr(multiarray, name):
            function = getattr(multiarray, name)
            found += [(function, "{}.multiarray.{}".format(home, name)) for home in ("numpy.core", "numpy._core")]
    classes = {type(numpy.dtype(kind)) for kind in _NUMPY_KINDS} | {numpy.dtype(kind).type for kind in _NUMPY_KINDS}
    return found + sorted(((kind, "{}.{}".format(kind.__module__, kind.__qualname__)) for kind in classes), key=str)


def _fairseq_meters() -> List[Tuple[Any, str]]:
    """The running averages that checkpoints of 2019 hold as objects, under both names of their module."""
    if not _has_module("fairseq.logging.meters"):
        return []
    meters = importlib.import_module("fairseq.logging.meters")
    modules = ("fairseq.logging.meters", "fairseq.meters")
    return [(getattr(meters, n), m + "." + n) for n in _OLD_METERS if hasattr(meters, n) for m in modules]


def _broadcast_placeholders() -> List[Tuple[Any, str]]:
    """What stands for the tensors of a checkpoint that rank 0 reads and sends to the other ranks."""
    if not _has_module("fairseq.distributed.utils"):
        return []
    kind = getattr(importlib.import_module("fairseq.distributed.utils"), "_TensorPlaceholder", None)
    return [] if kind is None else [(kind, "fairseq.distributed.utils._TensorPlaceholder")]


def _omegaconf_types() -> List[Tuple[Any, str]]:
    """The containers and leaves of a configuration stored as an OmegaConf object."""
    found = []
    for module_name, names in _OMEGACONF_TYPES.items():
        if _has_module(module_name):
            module = importlib.import_module(module_name)
            found += [(getattr(module, name), module_name + "." + name) for name in names if hasattr(module, name)]
    return found


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
