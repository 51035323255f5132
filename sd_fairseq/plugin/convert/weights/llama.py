"""LLaMA's sizes and weights: Hugging Face's names to ours and back."""

from __future__ import annotations

import re
from typing import Any, Dict

from torch import Tensor

from sd_fairseq.plugin.convert.weights.huggingface import find_parts
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.text.identity_dictionary import UNK

ARCHITECTURE = "switchable_llama"
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")
INNER = {
    **{f"self_attn.{name}_proj": f"{name}_proj" for name in "qkv"},
    "self_attn.o_proj": "out_proj",
    "mlp.up_proj": "ffn.fc1",
    "mlp.gate_proj": "ffn.gate",
    "mlp.down_proj": "ffn.fc2",
    "input_layernorm": "self_attn_layer_norm",
    "post_attention_layernorm": "final_layer_norm",
}
OTHERS = {
    "model.embed_tokens.weight": "decoder.embed_tokens.weight",
    "model.norm.weight": "decoder.layer_norm.weight",
    "lm_head.weight": "decoder.output_projection.weight",
}
OUR_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)\.weight")
OLD_BUFFER = "rotary_emb.inv_freq"  # in older files; follows from theta
REFUSED = {"attention_bias": "biases in attention", "mlp_bias": "biases in the feed-forward"}


def our_name(name: str) -> str:
    """Returns where one of Hugging Face's weights goes.

    Raises:
        InputError: not a weight of LLaMA.
    """
    match = LAYER.fullmatch(name)
    if match and match.group(2) in INNER:
        return f"decoder.layers.{match.group(1)}.{INNER[match.group(2)]}.weight"
    if name not in OTHERS:
        raise InputError(f"{name} is no weight of a LLaMA")
    return OTHERS[name]


def translate(weights: Dict[str, Tensor], options: Dict[str, Any]) -> Dict[str, Tensor]:
    """Returns the weights under our names, float32.

    Raises:
        InputError: a weight that is none of LLaMA's.
    """
    tied = options["share_decoder_input_output_embed"]
    return {
        our_name(name): value.float()
        for name, value in weights.items()
        if not name.endswith(OLD_BUFFER) and not (tied and name == "lm_head.weight")
    }


def options_of_config(config: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the model's options for a ``config.json``.

    Raises:
        InputError: one that we do not have.
    """
    for name, what in REFUSED.items():
        if config.get(name):
            raise InputError(f"config.json: {name} is true; switchable_llama has no {what}")
    rotation = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rotation.get("rope_type", rotation.get("type", "default")) != "default":
        raise InputError(f"config.json: rotary positions are scaled ({rotation}), which switchable_llama does not do")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"config.json: hidden_act is {config['hidden_act']!r}, expected 'silu'")
    try:
        heads, dim = config["num_attention_heads"], config["hidden_size"]
        return {
            "decoder_embed_dim": dim,
            "decoder_ffn_embed_dim": config["intermediate_size"],
            "decoder_layers": config["num_hidden_layers"],
            "decoder_attention_heads": heads,
            "key_heads": config.get("num_key_value_heads") or heads,
            "attention_head_dim": config.get("head_dim") or dim // heads,
            "rotary_theta": float(rotation.get("rope_theta", config.get("rope_theta", 10000.0))),
            "layer_norm_epsilon": config.get("rms_norm_eps", 1e-6),
            "share_decoder_input_output_embed": bool(config.get("tie_word_embeddings", False)),
            "max_source_positions": config.get("max_position_embeddings", 2048),
            "max_target_positions": config.get("max_position_embeddings", 2048),
        }
    except KeyError as error:
        raise InputError(f"config.json: has no {error.args[0]}") from error


def parts_of(config: Dict[str, Any], rows: int) -> Dict[str, int]:
    """Returns the ids that play a part; padding is added behind the last row where the model has none of its own.

    Args:
        config: ``config.json``.
        rows: of the embedding.
    """
    parts = find_parts(config, rows, end=2)
    return {**parts, **({UNK: 0} if 0 not in parts.values() else {})}


def their_weights(weights: Dict[str, Tensor], options: Dict[str, Any]) -> Dict[str, Tensor]:
    """Returns our weights under Hugging Face's names."""
    names = {ours: theirs for theirs, ours in OTHERS.items()}
    inner = {ours: theirs for theirs, ours in INNER.items()}
    found = {}
    for name, value in weights.items():
        match = OUR_LAYER.fullmatch(name)
        found[f"model.layers.{match.group(1)}.{inner[match.group(2)]}.weight" if match else names[name]] = value
    return found


def their_config(options: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the ``config.json`` of our options, without ids."""
    theta = options["rotary_theta"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options["decoder_embed_dim"],
        "intermediate_size": options["decoder_ffn_embed_dim"],
        "num_hidden_layers": options["decoder_layers"],
        "num_attention_heads": options["decoder_attention_heads"],
        "num_key_value_heads": options["key_heads"],
        "head_dim": options["attention_head_dim"],
        "hidden_act": "silu",
        "rms_norm_eps": options["layer_norm_epsilon"],
        "rope_theta": theta,  # transformers 4 and before
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": options["share_decoder_input_output_embed"],
        "max_position_embeddings": max(options["max_source_positions"], options["max_target_positions"]),
    }
