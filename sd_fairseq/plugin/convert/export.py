"""Writes a switchable BART under one fixed path as a plain ``bart_*`` checkpoint, skipped layers removed.

``sd-export CHECKPOINT OUTPUT --path dense | most-frequent --trace TRACE | PATH [--nearest]``. Stock fairseq loads the
result without this plugin and gives the same output as the switchable model on that path; so does what reads fairseq
checkpoints, such as CTranslate2's converter. Dictionaries are untouched: use those of the training data.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections import OrderedDict
from dataclasses import fields
from typing import Any, Dict, List, NamedTuple, Optional

import torch
from fairseq import checkpoint_utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.bart.model import BARTModel
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf
from torch import Tensor

from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.plugin.convert.export_layers import Norms, StockLayer, describe_changes, nearest_path, stock_layers
from sd_fairseq.plugin.convert.plain_checkpoint import plain_checkpoint, plain_options
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.loading import loading
from sd_fairseq.plugin.guards.preflight import check_checkpoint
from sd_fairseq.plugin.models.fixed_path import TOKENS, Path, dense_path, most_frequent_path, parse_path
from sd_fairseq.plugin.models.options import decision_space, fill_defaults
from sd_fairseq.plugin.models.prompt_model import PromptModel
from sd_fairseq.plugin.models.switchable_layers import FUSED_KERNEL_COPIES
from sd_fairseq.plugin.models.switchable_model import POLICY_KEYS
from sd_fairseq.whole_files import check_places, write_with

ARCHITECTURES = {"switchable_bart": "bart_large", "switchable_bart_large": "bart_large"}  # any other: bart_base
SITE_OF_MODULE = {
    "self_attn": "attention",
    "self_attn_layer_norm": "attention",
    "encoder_attn": "cross_attention",
    "encoder_attn_layer_norm": "cross_attention",
    **{f"{name}_proj": "attention" for name in ("q", "k", "v", "out")},  # of decoder-only models
    **{name: "ffn" for name in ("fc1", "fc2", "ffn", "final_layer_norm")},
}
OUTPUT_PROJECTIONS = ("self_attn.out_proj.", "encoder_attn.out_proj.", "out_proj.", "fc2.", "ffn.fc2.")
LAYER_KEY = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.((\w+)\..+)")


class Switchable(NamedTuple):
    """A switchable checkpoint, as much of it as matters here.

    Args:
        weights: the model's state.
        args: the model's options, all of them.
        task: the task's options.
        criterion: the criterion's options.
        space: what may be skipped.
    """

    weights: Dict[str, Tensor]
    args: argparse.Namespace
    task: Dict[str, Any]
    criterion: Dict[str, Any]
    space: DecisionSpace

    @property
    def is_bart(self) -> bool:
        """Tells whether fairseq has the plain model."""
        return str(self.args.arch).startswith("switchable_bart")

    @property
    def norms(self) -> Dict[str, Norms]:
        """What the norms of each stack do."""
        if not self.is_bart:
            return {stack: Norms(before=True) for stack in ("encoder", "decoder")}
        skipped = self.args.sd_skip_keeps_layer_norm
        return {s: Norms(getattr(self.args, f"{s}_normalize_before"), skipped) for s in ("encoder", "decoder")}


def read_switchable(path: str) -> Switchable:
    """Reads a switchable checkpoint, trained from the command line or through hydra.

    Raises:
        InputError: missing, truncated, foreign, or of another architecture.
    """
    check_checkpoint(path, "checkpoint")
    with warnings.catch_warnings(), loading(path, "checkpoint"):
        warnings.simplefilter("ignore")  # hydra's, about fairseq's use of it
        return _describe(checkpoint_utils.load_checkpoint_to_cpu(path), path)


def _describe(state: Dict[str, Any], path: str) -> Switchable:
    """Completes the options of a loaded checkpoint."""
    args = argparse.Namespace(**_to_dictionary(state["cfg"]["model"]))
    task = _to_dictionary(state["cfg"]["task"])
    criterion = _to_dictionary(state["cfg"].get("criterion") or argparse.Namespace())
    args.arch = getattr(args, "arch", None) or getattr(args, "_name", None)
    if not str(args.arch).startswith("switchable_") or args.arch not in ARCH_CONFIG_REGISTRY:
        raise InputError(f"checkpoint {path}: holds a {args.arch}, expected a switchable_bart, _t5, _gpt2 or _llama")
    fill_defaults(args)
    ARCH_CONFIG_REGISTRY[args.arch](args)
    if getattr(args, "sd_token_strategies", None) is None:
        args.sd_token_strategies = task.get("sd_token_strategies")
    tied = issubclass(ARCH_MODEL_REGISTRY[args.arch], PromptModel)
    return Switchable(state["model"], args, task, criterion, decision_space(args, tied))


def _to_dictionary(options: Any) -> Dict[str, Any]:
    """The options of a Namespace (from a command line) or of a hydra configuration."""
    if isinstance(options, argparse.Namespace):
        return dict(vars(options))
    values: Any = OmegaConf.to_container(options, resolve=True)
    return dict(values)


def freeze(source: Switchable, path: Path) -> Dict[str, Any]:
    """Builds the plain checkpoint of one path.

    Args:
        source: the switchable checkpoint.
        path: a checked path.

    Returns:
        A fairseq checkpoint of plain containers and tensors, which ``torch.load`` takes with its protection on.

    Raises:
        InputError: stock BART cannot compute the path; names the layer.
    """
    if path[TOKENS] != "keep":
        raise InputError(f"stock BART cannot drop source tokens ({path[TOKENS]}); --nearest keeps them all")
    layers = {stack: stock_layers(path, stack, source.norms[stack]) for stack in ("encoder", "decoder")}
    args = stock_args(source, {stack: len(found) for stack, found in layers.items()})
    return plain_checkpoint(args, stock_weights(source.weights, layers))


def stock_weights(weights: Dict[str, Tensor], layers: Dict[str, List[StockLayer]]) -> Dict[str, Tensor]:
    """Takes every stock sub-layer's weights from the layer it comes from; the rest is copied, the policy left out.

    Raises:
        InputError: a parameter that stock BART does not have.
    """
    taken = {key: value for key, value in weights.items() if not key.startswith(POLICY_KEYS)}
    found = OrderedDict((key, value) for key, value in taken.items() if not LAYER_KEY.match(key) and _is_stock(key))
    for key, value in taken.items():
        match = LAYER_KEY.match(key)
        if match is None:
            continue
        stack, index, name, module = match.groups()
        if module not in SITE_OF_MODULE:
            raise InputError(f"parameter {key} has no place in stock BART")
        site = f"{stack}_{SITE_OF_MODULE[module]}"
        for place, layer in enumerate(layers[stack]):
            if layer[site].layer == int(index):
                off = not layer[site].runs and name.startswith(OUTPUT_PROJECTIONS)
                found[f"{stack}.layers.{place}.{name}"] = torch.zeros_like(value) if off else value
    return found


def _is_stock(key: str) -> bool:
    return not (key.startswith("encoder.layers.") and key.endswith(FUSED_KERNEL_COPIES))


def stock_args(source: Switchable, depths: Dict[str, int]) -> Any:
    """Collects the options of the plain model and task, every dimension spelled out.

    Args:
        source: the switchable checkpoint.
        depths: number of layers by stack.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    BARTModel.add_args(parser)
    known = {action.dest for action in parser._actions} - {"encoder_layers_to_keep", "decoder_layers_to_keep", "help"}
    model = argparse.Namespace(**{name: value for name, value in vars(source.args).items() if name in known})
    model.arch = ARCHITECTURES.get(source.args.arch, "bart_base")
    model.encoder_layers, model.decoder_layers = depths["encoder"], depths["decoder"]
    ARCH_CONFIG_REGISTRY[model.arch](model)
    name = str(source.task.get("_name") or source.task.get("task") or "switchable_translation")
    name = name[len("switchable_") :] if name.startswith("switchable_") else name
    options = {field.name for field in fields(TASK_DATACLASS_REGISTRY[name])} if name in TASK_DATACLASS_REGISTRY else ()
    task = {key: value for key, value in source.task.items() if key in options and key != "_name"}
    found = {**stock_criterion(name, source.criterion), **task, **vars(model), "task": name}
    return plain_options(found)


def stock_criterion(task: str, options: Dict[str, Any]) -> Dict[str, Any]:
    """Returns what ``fairseq-validate`` reads of the criterion: the plain one of the task, as smooth as the model's.

    Args:
        task: name of the plain task.
        options: of the criterion that the model was trained with.
    """
    if task == "sentence_prediction":
        return {"criterion": task, "classification_head_name": "sentence_classification_head"}
    smooth, average = options.get("label_smoothing") or 0.0, bool(options.get("sentence_avg"))
    return {"criterion": "label_smoothed_cross_entropy", "label_smoothing": smooth, "sentence_avg": average}


def choose_path(source: Switchable, wanted: str, trace: Optional[str]) -> Path:
    """Reads ``--path``.

    Raises:
        InputError: unknown notation, no or another model's trace, or a trace that nothing is read of.
    """
    if trace is not None and wanted != "most-frequent":
        raise InputError(f"--trace has no effect with --path {wanted}; it needs --path most-frequent")
    if wanted == "dense":
        return dense_path(source.space)
    if wanted != "most-frequent":
        return parse_path(wanted, source.space)
    if trace is None:
        raise InputError("--path most-frequent needs --trace FILE, as written by --sd-trace")
    return most_frequent_path(trace, source.space, source.args.arch)


def export(options: argparse.Namespace) -> List[str]:
    """Carries the command out; returns what to tell the user.

    Raises:
        InputError: see the functions above.
    """
    source = read_switchable(options.checkpoint)
    if (options.format == "fairseq") != source.is_bart:
        raise InputError(
            f"--format {options.format}: a BART becomes fairseq's, a T5, GPT-2 or LLaMA Hugging Face's; "
            f"{options.checkpoint} holds a {source.args.arch}"
        )
    if options.format == "huggingface":
        from sd_fairseq.plugin.convert.export_huggingface import export_folder

        return export_folder(source, options)
    check_places([options.output], [options.checkpoint, options.trace])
    wanted = choose_path(source, options.path, options.trace)
    path = nearest_path(wanted, source.space, source.norms) if options.nearest else wanted
    checkpoint = freeze(source, path)
    write_with(options.output, lambda stream: torch.save(checkpoint, stream))
    args, weights = checkpoint["args"], checkpoint["model"]
    before = sum(value.numel() for key, value in source.weights.items() if not key.startswith(POLICY_KEYS))
    after = sum(value.numel() for value in weights.values())
    kept = ",".join(f"{site}={keeps}" for site, keeps in path.items())
    return [
        *(f"nearest path: {change}" for change in describe_changes(wanted, path)),
        f"path: {kept}",
        f"{options.output}: {args.arch}, {source.args.encoder_layers} + {source.args.decoder_layers} layers became "
        f"{args.encoder_layers} + {args.decoder_layers}, {after / max(before, 1):.1%} of the parameters",
    ]
