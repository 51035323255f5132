"""GPT-2's sizes and weights: Hugging Face's names to ours and back. Its products stand transposed there."""

from __future__ import annotations

import re
from typing import Any, Dict

import torch
from torch import Tensor

from sd_fairseq.plugin.convert.weights.huggingface import find_parts
from sd_fairseq.plugin.guards.errors import InputError

ARCHITECTURE = "switchable_gpt2"
END = 50256
ACTIVATIONS = {"gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu": "gelu", "relu": "relu"}
LAYER = re.compile(r"h\.(\d+)\.(.+)\.(weight|bias)")
OUR_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
QUERIES = "attn.c_attn"  # and keys and values
INNER = {
    "attn.c_proj": "out_proj",
    "mlp.c_fc": "ffn.fc1",
    "mlp.c_proj": "ffn.fc2",
    "ln_1": "self_attn_layer_norm",
    "ln_2": "final_layer_norm",
}
OTHERS = {
    "wte.weight": "decoder.embed_tokens.weight",
    "wpe.weight": "decoder.embed_positions.weight",
    "ln_f.weight": "decoder.layer_norm.weight",
    "ln_f.bias": "decoder.layer_norm.bias",
    "lm_head.weight": "decoder.output_projection.weight",
}
MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # in older files; no weight
REFUSED = ("scale_attn_by_inverse_layer_idx", "add_cross_attention")


def translate(weights: Dict[str, Tensor], options: Dict[str, Any]) -> Dict[str, Tensor]:
    """Returns the weights under our names, float32.

    Raises:
        InputError: a weight that is none of GPT-2's.
    """
    tied, found = options["share_decoder_input_output_embed"], {}
    for name, value in weights.items():
        name = name[len("transformer.") :] if name.startswith("transformer.") else name
        match = LAYER.fullmatch(name)
        if MASK.fullmatch(name) or (tied and name == "lm_head.weight"):
            continue
        if match is None or match.group(2) not in (*INNER, QUERIES):
            if name not in OTHERS:
                raise InputError(f"{name} is no weight of a GPT-2")
            found[OTHERS[name]] = value.float()
            continue
        layer, kind, part = match.groups()
        value = (value.t() if value.dim() == 2 else value).float().contiguous()
        if kind != QUERIES:
            found[f"decoder.layers.{layer}.{INNER[kind]}.{part}"] = value
        else:
            for ours, third in zip("qkv", value.chunk(3)):
                found[f"decoder.layers.{layer}.{ours}_proj.{part}"] = third.clone()
    return found


def options_of_config(config: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the model's options for a ``config.json``.

    Raises:
        InputError: one that we do not have.
    """
    for name in REFUSED:
        if config.get(name):
            raise InputError(f"config.json: {name} is true, which switchable_gpt2 does not do")
    if not config.get("scale_attn_weights", True):
        raise InputError("config.json: scale_attn_weights is false, which switchable_gpt2 does not do")
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        valid = ", ".join(ACTIVATIONS)
        raise InputError(f"config.json: activation_function is {activation!r}, expected one of {valid}")
    try:
        return {
            "decoder_embed_dim": config["n_embd"],
            "decoder_ffn_embed_dim": config.get("n_inner") or 4 * config["n_embd"],
            "decoder_layers": config["n_layer"],
            "decoder_attention_heads": config["n_head"],
            "positions": config.get("n_positions", 1024),
            "feed_forward": ACTIVATIONS[activation],
            "layer_norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
            "share_decoder_input_output_embed": bool(config.get("tie_word_embeddings", True)),
        }
    except KeyError as error:
        raise InputError(f"config.json: has no {error.args[0]}") from error


def parts_of(config: Dict[str, Any], rows: int) -> Dict[str, int]:
    """Returns the ids that play a part; padding is added behind the last row (GPT-2 has none)."""
    return find_parts(config, rows, END)


def their_weights(weights: Dict[str, Tensor], options: Dict[str, Any]) -> Dict[str, Tensor]:
    """Returns our weights under Hugging Face's names; scaled embeddings are scaled once for all, beside a head."""
    names = {ours: theirs for theirs, ours in OTHERS.items()}
    inner = {ours: theirs for theirs, ours in INNER.items()}
    found, thirds = {}, {}
    for name, value in weights.items():
        match = OUR_LAYER.fullmatch(name)
        if match is None:
            found[names[name] if names[name].startswith("lm_head") else "transformer." + names[name]] = value
            continue
        layer, kind, part = match.groups()
        value = value.t().contiguous() if value.dim() == 2 else value
        if kind in inner:
            found[f"transformer.h.{layer}.{inner[kind]}.{part}"] = value
        else:
            thirds[layer, kind[0], part] = value
    for layer, part in {(layer, part) for layer, _, part in thirds}:
        joined = torch.cat([thirds[layer, third, part] for third in "qkv"], dim=-1)
        found[f"transformer.h.{layer}.{QUERIES}.{part}"] = joined
    if options["embed_scale"] != 1.0:
        found.setdefault("lm_head.weight", found["transformer.wte.weight"])
        found["transformer.wte.weight"] = options["embed_scale"] * found["transformer.wte.weight"]
    return found


def their_config(options: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the ``config.json`` of our options, without ids."""
    activations = {ours: theirs for theirs, ours in reversed(list(ACTIVATIONS.items()))}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": options["decoder_embed_dim"],
        "n_inner": options["decoder_ffn_embed_dim"],
        "n_layer": options["decoder_layers"],
        "n_head": options["decoder_attention_heads"],
        "n_positions": options["positions"],
        "activation_function": activations[options["feed_forward"]],
        "layer_norm_epsilon": options["layer_norm_epsilon"],
        "tie_word_embeddings": options["share_decoder_input_output_embed"] and options["embed_scale"] == 1.0,
    }
