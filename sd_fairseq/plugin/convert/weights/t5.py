"""T5's sizes and weights: Hugging Face's names to ours and back."""

from __future__ import annotations

import re
from typing import Any, Dict, Tuple

from torch import Tensor

from sd_fairseq.families.t5 import FEED_FORWARDS
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.text.identity_dictionary import EOS, PAD, UNK

ARCHITECTURE = "switchable_t5"
PARTS = {PAD: 0, EOS: 1, UNK: 2}  # of every published T5
LAYER = re.compile(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.(.+)\.weight")
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
FEED_FORWARD = {"wi": "fc1", "wi_1": "fc1", "wi_0": "gate", "wo": "fc2"}
OUR_LAYER = re.compile(r"\w+\.layers\.(\d+)\.(self_attn|encoder_attn|ffn|final)(?:_layer_norm|\.(\w+))\.weight")
BIAS = re.compile(r"(encoder|decoder)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight")
OTHERS = {
    "encoder.final_layer_norm.weight": ("encoder.layer_norm.weight",),
    "decoder.final_layer_norm.weight": ("decoder.layer_norm.weight",),
    "shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    "lm_head.weight": ("decoder.output_projection.weight",),
}
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # of shared.weight


def our_names(name: str) -> Tuple[str, ...]:
    """Returns where one of Hugging Face's weights goes; nothing = it is a copy of another.

    Raises:
        InputError: not a weight of T5.
    """
    if name in OTHERS or name in COPIES:
        return OTHERS.get(name, ())
    bias = BIAS.fullmatch(name)
    if bias:
        return (f"{bias.group(1)}.relative_bias.embedding.weight",)
    match = LAYER.fullmatch(name)
    if match:
        stack, layer, place, inner = match.groups()
        ours = _in_layer(stack, int(place), inner)
        if ours:
            return (f"{stack}.layers.{layer}.{ours}.weight",)
    raise InputError(f"{name} is no weight of a T5")


def parts_of(config: Dict[str, Any], rows: int) -> Dict[str, int]:
    """Returns the ids that play a part, the same in every T5."""
    return PARTS


def _in_layer(stack: str, place: int, inner: str) -> str:
    kinds = ("self_attn", "final") if stack == "encoder" else ("self_attn", "encoder_attn", "final")
    if place >= len(kinds):
        return ""
    kind, (module, _, last) = kinds[place], inner.rpartition(".")
    if inner == "layer_norm":
        return f"{kind}_layer_norm"
    if kind == "final":
        return f"ffn.{FEED_FORWARD[last]}" if module == "DenseReluDense" and last in FEED_FORWARD else ""
    wanted = "SelfAttention" if kind == "self_attn" else "EncDecAttention"
    return f"{kind}.{ATTENTION[last]}" if module == wanted and last in ATTENTION else ""


def translate(weights: Dict[str, Tensor], options: Dict[str, Any]) -> Dict[str, Tensor]:
    """Returns the weights under our names, float32.

    Args:
        weights: under Hugging Face's; an embedding that stands in a stack only counts as the shared one.
        options: of our model.

    Raises:
        InputError: a weight that is none of T5's.
    """
    tied_head = options["share_decoder_input_output_embed"]
    if "shared.weight" not in weights and COPIES[0] in weights:
        weights = {**weights, "shared.weight": weights[COPIES[0]]}
    if not tied_head and "lm_head.weight" not in weights and "shared.weight" in weights:
        weights = {**weights, "lm_head.weight": weights["shared.weight"]}
    found = {}
    for name, value in weights.items():
        if not (tied_head and name == "lm_head.weight"):
            found.update({ours: value.float() for ours in our_names(name)})
    return found


def options_of_config(config: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the model's options for a ``config.json``.

    Raises:
        InputError: one that we do not have.
    """
    feed_forward = config.get("feed_forward_proj", "relu")
    if feed_forward not in FEED_FORWARDS:
        valid = ", ".join(FEED_FORWARDS)
        raise InputError(f"config.json: feed_forward_proj is {feed_forward!r}, expected one of {valid}")
    ids = tuple(config.get(name, default) for name, default in (("pad_token_id", 0), ("eos_token_id", 1)))
    if ids != (0, 1) or config.get("decoder_start_token_id", 0) != 0:
        raise InputError(f"config.json: padding and end are the ids {ids}, expected (0, 1) and a beginning of 0")
    if abs(config.get("layer_norm_epsilon", 1e-6) - 1e-6) > 1e-9:
        raise InputError(f"config.json: layer_norm_epsilon is {config['layer_norm_epsilon']}, expected 1e-6")
    try:
        return {
            "encoder_embed_dim": config["d_model"],
            "encoder_ffn_embed_dim": config["d_ff"],
            "encoder_layers": config["num_layers"],
            "decoder_layers": config.get("num_decoder_layers") or config["num_layers"],
            "encoder_attention_heads": config["num_heads"],
            "attention_head_dim": config["d_kv"],
            "feed_forward": feed_forward,
            # transformers 5 writes tie_word_embeddings true whatever the model, and the other beside it
            "share_decoder_input_output_embed": bool(
                config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
            ),
            "relative_buckets": config.get("relative_attention_num_buckets", 32),
            "relative_distance": config.get("relative_attention_max_distance", 128),
        }
    except KeyError as error:
        raise InputError(f"config.json: has no {error.args[0]}") from error


def options_of_weights(weights: Dict[str, Tensor]) -> Dict[str, Any]:
    """Returns the model's options where there are weights only, as in an ONNX package.

    Choice: with a gate it is a v1.1 (a head of its own), without one a 1.0 (tied); all have buckets up to 128 tokens.

    Raises:
        InputError: a weight is missing.
    """
    try:
        embedding = weights.get("shared.weight", weights.get(COPIES[0]))
        assert embedding is not None
        buckets, heads = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape
        gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in weights
        attention_dim = weights["encoder.block.0.layer.0.SelfAttention.q.weight"].size(0)
        ffn_dim = weights["encoder.block.0.layer.1.DenseReluDense.wo.weight"].size(1)
    except (KeyError, AssertionError) as error:
        raise InputError(f"not a T5: {error.args[0] if error.args else 'shared.weight'} is missing") from error
    depth = {stack: 1 + max(_layers(weights, stack), default=0) for stack in ("encoder", "decoder")}
    return {
        "encoder_embed_dim": embedding.size(1),
        "encoder_ffn_embed_dim": ffn_dim,
        "encoder_layers": depth["encoder"],
        "decoder_layers": depth["decoder"],
        "encoder_attention_heads": heads,
        "attention_head_dim": attention_dim // heads,
        "feed_forward": "gated-gelu" if gated else "relu",
        "share_decoder_input_output_embed": not gated,
        "relative_buckets": buckets,
        "relative_distance": 128,
    }


def _layers(weights: Dict[str, Tensor], stack: str):
    return [int(match.group(2)) for match in map(LAYER.fullmatch, weights) if match and match.group(1) == stack]


def their_weights(weights: Dict[str, Tensor], options: Dict[str, Any]) -> Dict[str, Tensor]:
    """Returns our weights under Hugging Face's names."""
    names = {ours[0]: theirs for theirs, ours in OTHERS.items()}
    gated = options["feed_forward"].startswith("gated-")
    inner = {"fc1": "wi_1" if gated else "wi", "gate": "wi_0", "fc2": "wo"}
    attention = {ours: theirs for theirs, ours in ATTENTION.items()}
    found = {}
    for name, value in weights.items():
        match, stack = OUR_LAYER.fullmatch(name), name.split(".")[0]
        if match is None and name.endswith(".relative_bias.embedding.weight"):
            found[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = value
        elif match is None and name != "decoder.embed_tokens.weight":  # the encoder's
            found[names[name]] = value
        elif match:
            layer, kind, last = match.groups()
            place = {"self_attn": 0, "encoder_attn": 1}.get(kind, 1 if stack == "encoder" else 2)
            module = {"self_attn": "SelfAttention.", "encoder_attn": "EncDecAttention."}.get(kind, "DenseReluDense.")
            theirs = "layer_norm" if last is None else module + (inner[last] if kind == "ffn" else attention[last])
            found[f"{stack}.block.{layer}.layer.{place}.{theirs}.weight"] = value
    return found


def their_config(options: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the ``config.json`` of our options, without ids."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "d_model": options["encoder_embed_dim"],
        "d_kv": options["attention_head_dim"],
        "d_ff": options["encoder_ffn_embed_dim"],
        "num_layers": options["encoder_layers"],
        "num_decoder_layers": options["decoder_layers"],
        "num_heads": options["encoder_attention_heads"],
        "relative_attention_num_buckets": options["relative_buckets"],
        "relative_attention_max_distance": options["relative_distance"],
        "feed_forward_proj": options["feed_forward"],
        "dropout_rate": options["dropout"],
        "tie_word_embeddings": options["share_decoder_input_output_embed"],
    }
