"""Makes ``tests/reference/gpt2``: two tiny GPT-2s with random weights, and what Hugging Face's code computes of them.

``python tests/reference/make_gpt2.py``, where transformers can be imported; it needs safetensors, too.
"""

import json
import os

import torch
from make_llama import ANSWERS, PROMPTS, record
from transformers import GPT2Config, GPT2LMHeadModel

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gpt2")
SIZES = dict(vocab_size=48, n_embd=16, n_layer=3, n_head=4, n_positions=64, eos_token_id=2, bos_token_id=2)
KINDS = {
    "plain": dict(activation_function="gelu_new", tie_word_embeddings=True),
    "untied": dict(activation_function="gelu", tie_word_embeddings=False, n_inner=40, pad_token_id=3),
}


def make(name, kind):
    torch.manual_seed(20260103)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, **kind)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + (".ln_" in key and key.endswith("weight")))
    folder = os.path.join(HERE, name)
    record(model, folder, kind["tie_word_embeddings"], SIZES["vocab_size"])
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as text:
        json.dump({"model_type": "gpt2", **SIZES, **kind}, text, indent=1)
        text.write("\n")


if __name__ == "__main__":
    assert max(PROMPTS) + max(ANSWERS) < SIZES["n_positions"]
    for name, kind in KINDS.items():
        make(name, kind)
