"""Lets a checkpoint's stored options name ``switchable_bart`` where they name ``bart``."""

from __future__ import annotations

import argparse
import json
from typing import Any, Dict

from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from omegaconf import DictConfig, OmegaConf

from sd_fairseq.plugin.guards.checkpoint_tables import Inert, read_tables
from sd_fairseq.plugin.guards.errors import InputError

DEFAULT_ARCHITECTURE = "switchable_bart"
PREFIX = "switchable_"


def obey_architecture_override(cfg: Any) -> None:
    """Lets ``--model-overrides "{'arch': 'switchable_bart_base'}"`` choose the model.

    fairseq builds the model that ``_name`` names. An override of ``arch`` reaches it in checkpoints of before fairseq
    0.10 only; later ones hold both, and the override is ignored.

    Args:
        cfg: the options of a model that is about to be built; changed in place.
    """
    wanted = getattr(cfg, "arch", None)
    if isinstance(cfg, argparse.Namespace) and str(wanted).startswith(PREFIX):
        cfg._name = wanted


def flat_options(cfg: DictConfig) -> argparse.Namespace:
    """Returns the options that fairseq-hydra-train gives a model, as fairseq-train gives them.

    fairseq's transformers drop every option that they do not know themselves from a configuration of hydra's, but keep
    it in a Namespace.
    """
    options = OmegaConf.to_container(cfg, resolve=True)
    return argparse.Namespace(**{"arch": options.get("_name"), **options})  # type: ignore[dict-item, union-attr]


def read_overrides(text: str) -> Dict[str, Any]:
    """Reads ``--model-overrides`` of the plugin's own commands: a JSON object.

    Raises:
        InputError: it is none.
    """
    try:
        overrides = json.loads(text)
    except ValueError:
        overrides = None
    if not isinstance(overrides, dict):
        raise InputError(f"--model-overrides {text!r}: expected a JSON object")
    return overrides


def overrides_for(path: str, text: str, data: str) -> Dict[str, Any]:
    """Returns the ``arg_overrides`` of the plugin's own commands, which take a plain BART for a switchable one.

    Args:
        path: checked checkpoint.
        text: ``--model-overrides``.
        data: binarised data folder.

    Raises:
        InputError: ``text`` is no JSON object.
    """
    given = read_overrides(text)
    overrides = {**switchable_overrides(path), **given, "data": data}
    if isinstance(overrides.get("task"), dict):  # where a group has its own overrides, fairseq reads no others for it
        overrides["task"] = {"data": data, **overrides["task"]}
    return overrides


def switchable_overrides(path: str) -> Dict[str, Any]:
    """Finds the overrides that make fairseq load a plain BART checkpoint as a switchable one, task included.

    Args:
        path: a checkpoint that :func:`~sd_fairseq.plugin.guards.preflight.check_checkpoint` has passed.

    Returns:
        ``arg_overrides`` for fairseq's loaders; what the checkpoint has already is left as it is. Where options stand
        depends on the checkpoint's age: all in ``args``, or by group in ``cfg``, each group as a Namespace or (trained
        by fairseq-hydra-train) as a dictionary.
    """
    content = read_tables(path).content
    flat = content.get("args")
    if flat is not None:
        options = flat.attributes or {}
        return _differing(options, arch=switchable_architecture(options.get("arch")), task=_task(options.get("task")))
    groups = content["cfg"]
    overrides: Dict[str, Any] = {}
    task = groups.get("task")
    if isinstance(task, dict) and _task(task.get("_name")) != task.get("_name"):
        overrides["task"] = {"_name": _task(task.get("_name"))}
    model = groups.get("model")
    if isinstance(model, Inert):
        options = model.attributes or {}
        overrides.update(_differing(options, arch=switchable_architecture(options.get("arch"))))
    elif isinstance(model, dict):
        name = switchable_architecture(model.get("_name"))
        overrides.update({} if name == model.get("_name") else {"model": {"_name": name}})
    return overrides


def _differing(found: Dict[str, Any], **wanted: Any) -> Dict[str, Any]:
    return {key: value for key, value in wanted.items() if value is not None and value != found.get(key)}


def switchable_architecture(name: Any) -> str:
    """The switchable counterpart of an architecture; sizes come from the checkpoint anyway."""
    if str(name).startswith(PREFIX):
        return str(name)
    return PREFIX + str(name) if PREFIX + str(name) in ARCH_MODEL_REGISTRY else DEFAULT_ARCHITECTURE


def _task(name: Any) -> Any:
    """The switchable counterpart of a task, or the task itself."""
    return PREFIX + str(name) if PREFIX + str(name) in TASK_REGISTRY else name
