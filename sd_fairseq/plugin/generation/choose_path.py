"""Which model a generation builds: a plain BART as a switchable one, along the path of ``--sd-path``."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any, Dict, Optional

from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.bart.model import BARTModel
from omegaconf import OmegaConf, open_dict

from sd_fairseq.decision.rule_notation import VALID_RULES, is_rule, read_rule
from sd_fairseq.decision.rules import DecisionRule
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.conversion import switchable_architecture
from sd_fairseq.plugin.models.options import check_supported

logger = logging.getLogger(__name__)

VALID_PATHS = (
    "dense, random:KEEP[:SEED], static:PATH or PATH alone, such as encoder_attention=110,decoder_ffn=101, or a rule "
    f"with its values, such as hsd:min=3,over=32, of {VALID_RULES}"
)


def read_path(text: str) -> Dict[str, Any]:
    """Reads ``--sd-path``.

    Args:
        text: see :data:`VALID_PATHS`; the path itself is checked when the model is built, which knows its layers.

    Returns:
        The model options that it stands for.

    Raises:
        InputError: naming what was found and what is valid.
    """
    name, _, rest = text.strip().partition(":")
    if is_rule(text):
        try:
            read_rule(text)
        except InputError as error:
            raise InputError(f"--sd-path {error}") from error
        return {"sd_policy": "dense", "sd_rule": text.strip()}
    if name == "dense" and not rest:
        return {"sd_policy": "dense"}
    if name == "random":
        keep, _, seed = rest.partition(":")
        try:
            options = {"sd_policy": "random", "sd_random_keep": float(keep), "sd_random_seed": int(seed or 1)}
        except ValueError:
            options = {}
        if options and 0 <= options["sd_random_keep"] <= 1:
            return options
    elif name == "static" and rest:
        return {"sd_policy": "static", "sd_static_path": rest}
    elif text.lstrip().startswith("{") or "=" in name:
        return {"sd_policy": "static", "sd_static_path": text}
    raise InputError(f"--sd-path {text!r}: expected one of {VALID_PATHS}")


def check_rule(rule: DecisionRule, args: Any) -> None:
    """Refuses options of a search that a rule cannot go with.

    Args:
        rule: of the model.
        args: fairseq's generation options.

    Raises:
        InputError: naming both.
    """
    beam = getattr(args, "beam", 5)
    if rule.needs_beam_1 and beam != 1:
        raise InputError(f"--sd-path {rule.text} keeps one hypothesis a sentence, found --beam {beam}: give --beam 1")
    wants_alignment = getattr(args, "print_alignment", None) or getattr(args, "replace_unk", None) is not None
    if rule.by_confidence and wants_alignment:
        raise InputError(f"--sd-path {rule.text} keeps no attention, found --print-alignment or --replace-unk")


def choose_budget(cfg: Any, budget: Optional[float], path: Optional[str]) -> None:
    """Sets the FLOPs budget that a policy for a range of budgets serves.

    Args:
        cfg: the options of a model that is about to be built; changed in place.
        budget: ``--sd-flops-budget`` or None.
        path: ``--sd-path`` or None.

    Raises:
        InputError: a path is given too, or the checkpoint is none of a switchable model. The policy's range is looked
            at when the model is built.
    """
    if budget is None:
        return
    if path is not None:
        raise InputError(f"--sd-flops-budget {budget:g} is for the checkpoint's policy, found --sd-path {path}")
    name = str(getattr(cfg, "_name", None) or getattr(cfg, "arch", None))
    if not name.startswith("switchable_"):
        raise InputError(f"--sd-flops-budget {budget:g} needs a checkpoint of a switchable model, found {name}")
    _set(cfg, {"sd_served_budget": float(budget)})


def choose_model(cfg: Any, path: Optional[str], fast: bool) -> None:
    """Lets generation build a switchable model from a plain BART's options, and sets who decides.

    Args:
        cfg: the options of a model that is about to be built; changed in place.
        path: ``--sd-path`` or None.
        fast: the fast generator is wanted.

    Raises:
        InputError: a path for a model that has none.
    """
    name = str(getattr(cfg, "_name", None) or getattr(cfg, "arch", None))
    plain = ARCH_MODEL_REGISTRY.get(name) is BARTModel
    reason = _why_not_switchable(cfg) if plain else None
    if path is not None and (reason or not (plain or name.startswith("switchable_"))):
        raise InputError(f"--sd-path {path!r} needs a BART that can be switched, found {reason or name}")
    if plain and reason is None and (fast or path is not None):
        arch = switchable_architecture(name)
        _set(cfg, {"_name": arch, "arch": arch, "sd_policy": "dense"})
    elif plain and reason is not None and fast:
        logger.warning("this BART cannot run in the fast generator: %s", reason)
    if path is not None:
        _set(cfg, read_path(path))


def _why_not_switchable(cfg: Any) -> Optional[str]:
    try:
        check_supported(cfg)
    except InputError as error:
        return str(error)
    return None


def _set(cfg: Any, options: Dict[str, Any]) -> None:
    with open_dict(cfg) if OmegaConf.is_config(cfg) else nullcontext():
        for key, value in options.items():
            setattr(cfg, key, value)
