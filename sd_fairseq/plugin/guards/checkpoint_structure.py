"""A model that starts from a checkpoint has the checkpoint's sizes: nobody types them again."""

from __future__ import annotations

import argparse
import logging
from typing import Any, Container, Dict, List, Optional

from sd_fairseq.plugin.guards.checkpoint_tables import Inert, read_tables
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.presets import MODEL_VALUES, flag

logger = logging.getLogger(__name__)
SIZES = (
    *("encoder_layers", "decoder_layers", "encoder_embed_dim", "decoder_embed_dim"),
    *("encoder_ffn_embed_dim", "decoder_ffn_embed_dim", "encoder_attention_heads", "decoder_attention_heads"),
    *("encoder_learned_pos", "decoder_learned_pos", "encoder_normalize_before", "decoder_normalize_before"),
    *("layernorm_embedding", "no_scale_embedding", "share_all_embeddings", "share_decoder_input_output_embed"),
    *("decoder_input_dim", "decoder_output_dim", "activation_fn"),
    *("attention_head_dim", "feed_forward", "relative_buckets", "relative_distance"),
    *("key_heads", "rotary_theta", "layer_norm_epsilon", "added_symbols", "positions", "embed_scale"),
)
POSITIONS = ("max_source_positions", "max_target_positions")
# of a policy that the checkpoint holds
DECISIONS = (
    *("sd_space", "sd_first_encoder_layer", "sd_first_decoder_layer", "sd_always_run_attention"),
    *("sd_cross_attention_apart", "sd_token_strategies", "sd_policy_hidden_size", "sd_policy_input"),
    "sd_budget_range",
    "sd_protect_end",
    "sd_skip_keeps_layer_norm",
)


def stored_options(path: str) -> Dict[str, Any]:
    """Reads the model's options in a checkpoint, whatever its age, without loading it.

    Args:
        path: a checkpoint that :func:`~sd_fairseq.plugin.guards.preflight.check_checkpoint` has passed.
    """
    content = read_tables(path).content
    flat = content.get("args")
    if flat is not None:
        return flat.attributes or {}
    model = content["cfg"].get("model")
    return (model.attributes if isinstance(model, Inert) else model) or {}


def stored_task(path: str) -> Optional[str]:
    """Reads the name of the task that a checkpoint was trained for; None where it does not say.

    Args:
        path: as :func:`stored_options`.
    """
    content = read_tables(path).content
    flat = content.get("args")
    if flat is not None:
        return (flat.attributes or {}).get("task")
    task = content["cfg"].get("task")
    options = (task.attributes if isinstance(task, Inert) else task) or {}
    return options.get("_name") or options.get("task")


def stored_symbols(path: str) -> Optional[int]:
    """Reads how many symbols a checkpoint has embeddings for; None where it has none.

    Args:
        path: as :func:`stored_options`.
    """
    value = read_tables(path).content["model"].get("encoder.embed_tokens.weight")
    arguments = getattr(value, "arguments", ())
    if arguments and getattr(arguments[0], "arguments", ()):  # a parameter around its tensor
        arguments = arguments[0].arguments
    return int(arguments[2][0]) if len(arguments) > 2 and arguments[2] else None


def has_policy(path: str) -> bool:
    """Tells whether a checkpoint holds a policy's weights."""
    return any("encoder.policy." in str(key) for key in read_tables(path).content["model"])


def take_structure(args: argparse.Namespace, path: str, option: str, typed: Container[str]) -> List[str]:
    """Gives a model that is about to be built the sizes of the checkpoint that it starts from, in place.

    Args:
        args: the model's options.
        path, option: the checkpoint, and what named it.
        typed: options that stand on the command line, as names.

    Returns:
        Names of the options that changed.

    Raises:
        InputError: a size that is typed and is another one's; positions may be typed, and fewer: they limit the data.
    """
    stored = {**MODEL_VALUES["paper"], **stored_options(path)}  # older checkpoints do not say a default
    names = [*SIZES, *POSITIONS, *(DECISIONS if has_policy(path) else ())]
    changed = []
    for name in names:
        found, wanted = stored.get(name), getattr(args, name, None)
        if found is None or found == wanted or (isinstance(found, Inert) and not found):
            continue
        fewer = name in POSITIONS and wanted is not None and wanted < found
        if name in typed and name not in DECISIONS and not fewer:
            raise InputError(f"{flag(name)} {wanted}, but {option} {path} has {found}; leave the option out")
        if name not in typed or fewer:
            setattr(args, name, found)
            changed.append(name)
    range_, before = getattr(args, "sd_budget_range", None), stored.get("sd_budget_range")
    if "sd_budget_range" in names and range_ and before and range_ != before:
        logger.warning("the policy of %s was trained for budgets of %s; it goes on with %s", path, before, range_)
    return changed
