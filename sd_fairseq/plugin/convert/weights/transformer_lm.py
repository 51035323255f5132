"""What fairseq trains as ``transformer_lm`` (``_gpt``, ``_gpt2_*``, ``_gpt3_*``) becomes a switchable GPT-2.

Ids are the dictionary's. Positions of sines become rows of the table, as learned ones are.
"""

from __future__ import annotations

import os
import re
import warnings
from argparse import Namespace
from typing import Any, Dict

from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.modules import SinusoidalPositionalEmbedding
from omegaconf import OmegaConf
from torch import Tensor

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.loading import loading
from sd_fairseq.plugin.guards.preflight import check_checkpoint

ACTIVATIONS = {"gelu": "gelu", "gelu_accurate": "gelu-tanh", "gelu_fast": "gelu-tanh", "relu": "relu"}
REFUSED = (
    *("adaptive_input", "adaptive_softmax_cutoff", "character_embeddings", "no_token_positional_embeddings"),
    *("no_decoder_final_norm", "layernorm_embedding", "base_layers", "scale_attn", "scale_heads", "scale_fc"),
    "scale_resids",
)
LAYER = re.compile(r"(decoder\.layers\.\d+\.)(.+)")
INNER = {**{f"self_attn.{name}_proj": f"{name}_proj" for name in ("q", "k", "v", "out")}, "fc1": "ffn.fc1"}
INNER.update({"fc2": "ffn.fc2", "self_attn_layer_norm": "self_attn_layer_norm", "final_layer_norm": "final_layer_norm"})
POSITIONS = "decoder.embed_positions.weight"
OTHERS = ("decoder.embed_tokens.weight", "decoder.layer_norm.weight", "decoder.layer_norm.bias")
HEADS = ("decoder.output_projection.weight", "decoder.embed_out")
BUFFERS = ("decoder.version", "decoder.embed_positions._float_tensor")


def read(path: str) -> Dict[str, Any]:
    """Reads a checkpoint.

    Returns:
        ``options`` and ``weights`` of our model, ``dictionary``.

    Raises:
        InputError: no checkpoint of such a model, no dictionary, or an option that we do not have.
    """
    check_checkpoint(path, "checkpoint")
    with warnings.catch_warnings(), loading(path, "checkpoint"):
        warnings.simplefilter("ignore")  # hydra's, about fairseq's use of it
        state = checkpoint_utils.load_checkpoint_to_cpu(path)
    given, task = (as_dictionary(state["cfg"][name]) for name in ("model", "task"))
    arch = str(given.get("arch") or given.get("_name"))
    if not arch.startswith("transformer_lm"):
        raise InputError(f"checkpoint {path}: holds a {arch}, expected one of fairseq's transformer_lm")
    dictionary = find_dictionary([os.path.dirname(path) or ".", str(task.get("data") or "").split(":")[0]])
    options = options_of({**task, **{name: value for name, value in given.items() if value is not None}})
    weights = translate(state["model"], options, dictionary.pad())
    return {"options": options, "weights": weights, "dictionary": dictionary}


def as_dictionary(options: Any) -> Dict[str, Any]:
    """The options of a Namespace (from a command line) or of a hydra configuration."""
    if isinstance(options, Namespace):
        return dict(vars(options))
    values: Any = OmegaConf.to_container(options, resolve=True) if options is not None else {}
    return dict(values)


def find_dictionary(folders: Any) -> Dictionary:
    """Reads the first ``dict.txt`` in ``folders``.

    Raises:
        InputError: there is none.
    """
    for folder in folders:
        path = os.path.join(folder, "dict.txt")
        if folder and os.path.isfile(path):
            with loading(path, "dictionary"):
                return Dictionary.load(path)
    raise InputError(
        f"no dict.txt in {' or '.join(folder for folder in folders if folder)}; put it beside the checkpoint"
    )


def options_of(given: Dict[str, Any]) -> Dict[str, Any]:
    """Returns our options for the checkpoint's.

    Raises:
        InputError: one that we do not have.
    """
    for name in REFUSED:
        if given.get(name):
            raise InputError(f"the checkpoint's {name} is {given[name]!r}, which switchable_gpt2 does not do")
    dim, activation = given["decoder_embed_dim"], given.get("activation_fn", "relu")
    for name in ("decoder_input_dim", "decoder_output_dim"):
        if given.get(name, dim) != dim:
            raise InputError(f"the checkpoint's {name} is {given[name]}, expected {dim} as its layers have")
    if activation not in ACTIVATIONS:
        raise InputError(f"the checkpoint's activation_fn is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    return {
        "decoder_embed_dim": dim,
        "decoder_ffn_embed_dim": given["decoder_ffn_embed_dim"],
        "decoder_layers": given["decoder_layers"],
        "decoder_attention_heads": given["decoder_attention_heads"],
        "positions": given.get("max_target_positions") or given.get("tokens_per_sample") or 1024,
        "feed_forward": ACTIVATIONS[activation],
        "embed_scale": 1.0 if given.get("no_scale_embedding") else float(dim) ** 0.5,
        "layer_norm_epsilon": 1e-5,
        "share_decoder_input_output_embed": bool(given.get("share_decoder_input_output_embed")),
    }


def translate(weights: Dict[str, Tensor], options: Dict[str, Any], padding: int) -> Dict[str, Tensor]:
    """Returns the weights under our names; sets ``options["positions"]`` to the rows of a learned table.

    Raises:
        InputError: a weight that is none of such a model's.
    """
    found: Dict[str, Tensor] = {}
    for name, value in weights.items():
        match, tied = LAYER.fullmatch(name), options["share_decoder_input_output_embed"]
        inner, _, part = match.group(2).rpartition(".") if match else ("", "", "")
        if match and inner in INNER:
            found[f"{match.group(1)}{INNER[inner]}.{part}"] = value.float()
        elif match and inner == "self_attn" and part.startswith("in_proj_"):  # of older fairseqs
            for ours, third in zip("qkv", value.float().chunk(3)):
                found[f"{match.group(1)}{ours}_proj.{part[len('in_proj_') :]}"] = third.clone()
        elif name == POSITIONS:
            found[name] = value[padding + 1 :].float()  # fairseq's first position is the row behind padding's
        elif name in OTHERS or (name in HEADS and not tied):
            found[HEADS[0] if name in HEADS else name] = value.float()
        elif name not in (*BUFFERS, *HEADS):
            raise InputError(f"{name} is no weight of a transformer_lm")
    rows = padding + 1 + options["positions"]
    sines = SinusoidalPositionalEmbedding.get_embedding(rows, options["decoder_embed_dim"], padding)[padding + 1 :]
    options["positions"] = found.setdefault(POSITIONS, sines).size(0)
    return found
