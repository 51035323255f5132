"""LLaMA's kind in a GGUF file: sizes, weights and tokenizer as Hugging Face has them."""

from __future__ import annotations

import re
from typing import Any, Dict, Optional

from torch import Tensor

from sd_fairseq.plugin.convert.weights.byte_level import tokenizer_content
from sd_fairseq.plugin.convert.weights.gguf import GGUF
from sd_fairseq.plugin.guards.errors import InputError

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INNER = {
    **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("up", "gate", "down")},
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
CONTROL = 3  # type of a token that is no text
# pre-tokenizers that are known here: whether digits stand alone
PRE_TOKENIZERS = {"smollm": True, "gpt-2": False}


def config_of(file: GGUF) -> Dict[str, Any]:
    """Returns what Hugging Face's ``config.json`` would say.

    Raises:
        InputError: another architecture, or a file that does not say its sizes.
    """
    about = file.about
    if about.get("general.architecture") != "llama":
        raise InputError(f"a GGUF file of a {about.get('general.architecture')!r}, expected 'llama'")
    if about.get("llama.rope.scaling.type", "none") != "none":
        raise InputError("a GGUF file with scaled rotary positions, which switchable_llama does not do")
    try:
        heads, dim = about["llama.attention.head_count"], about["llama.embedding_length"]
        return {
            "model_type": "llama",
            "hidden_size": dim,
            "intermediate_size": about["llama.feed_forward_length"],
            "num_hidden_layers": about["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": about.get("llama.attention.head_count_kv", heads),
            "head_dim": about.get("llama.attention.key_length", dim // heads),
            "rms_norm_eps": about["llama.attention.layer_norm_rms_epsilon"],
            "rope_theta": about.get("llama.rope.freq_base", 10000.0),
            "max_position_embeddings": about.get("llama.context_length", 2048),
            "tie_word_embeddings": "output.weight" not in file.weights,
            "eos_token_id": about.get("tokenizer.ggml.eos_token_id", 2),
            "pad_token_id": about.get("tokenizer.ggml.padding_token_id"),
        }
    except KeyError as error:
        raise InputError(f"the GGUF file does not say {error.args[0]}") from error


def weights_of(file: GGUF, config: Dict[str, Any]) -> Dict[str, Tensor]:
    """Returns the weights under Hugging Face's names.

    Raises:
        InputError: a weight that is none of LLaMA's.
    """
    found = {}
    for name, value in file.weights.items():
        match = LAYER.fullmatch(name)
        if name not in NAMES and not (match and match.group(2) in INNER):
            raise InputError(f"{name} is no weight of a LLaMA")
        if match is None:
            found[NAMES[name]] = value
            continue
        layer, kind = match.groups()
        if kind in ("attn_q", "attn_k"):
            heads = config["num_attention_heads" if kind == "attn_q" else "num_key_value_heads"]
            value = in_halves(value, heads)
        found[f"model.layers.{layer}.{INNER[kind]}.weight"] = value
    return found


def in_halves(weight: Tensor, heads: int) -> Tensor:
    """Reorders the rows of a head [A, C]: GGUF pairs neighbours in the rotation, Hugging Face the two halves."""
    return weight.view(heads, -1, 2, weight.size(1)).transpose(1, 2).reshape(weight.size())


def tokenizer_of(file: GGUF) -> Optional[str]:
    """Returns the content of a ``tokenizer.json``; None where the file's kind of tokenizer is not known here."""
    about = file.about
    pre = about.get("tokenizer.ggml.pre")
    if about.get("tokenizer.ggml.model") != "gpt2" or pre not in PRE_TOKENIZERS:
        return None
    tokens, kinds = about["tokenizer.ggml.tokens"], about["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds) if kind == CONTROL]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return tokenizer_content(vocabulary, about["tokenizer.ggml.merges"], special, PRE_TOKENIZERS[pre])
