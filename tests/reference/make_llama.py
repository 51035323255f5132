"""Makes ``tests/reference/llama``: two tiny LLaMAs with random weights, and what Hugging Face's code computes of them.

``python tests/reference/make_llama.py``, where transformers can be imported; it needs safetensors, too.
"""

import json
import os

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "llama")
SIZES = dict(vocab_size=48, hidden_size=16, head_dim=6, intermediate_size=24, num_hidden_layers=3)
SIZES.update(num_attention_heads=4, rms_norm_eps=1e-5, max_position_embeddings=128)
KINDS = {
    "grouped": dict(num_key_value_heads=2, tie_word_embeddings=False, eos_token_id=2, pad_token_id=3),
    "tied": dict(num_key_value_heads=4, tie_word_embeddings=True, eos_token_id=2, pad_token_id=None),
}
THETA = 5000.0
PROMPTS, ANSWERS = (40, 23, 9, 3, 2), (5, 12, 3, 8, 6)


def record(model, folder, tied, words):
    """Writes weights, random sequences in two parts, and the logits of the second."""
    rows = len(PROMPTS), max(PROMPTS), max(ANSWERS)
    prompts, answers = torch.zeros(rows[0], rows[1]).long(), torch.zeros(rows[0], rows[2]).long()
    logits = torch.zeros(rows[0], rows[2], words)
    for row, (length, steps) in enumerate(zip(PROMPTS, ANSWERS)):
        sequence = torch.randint(4, words, (1, length + steps))
        with torch.no_grad():
            found = model(input_ids=sequence).logits[0]
        prompts[row, :length], answers[row, :steps] = sequence[0, :length], sequence[0, length:]
        logits[row, :steps] = found[length - 1 : -1]  # what the prompt's last token and the answer's tokens predict
    os.makedirs(folder, exist_ok=True)
    weights = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    if tied:
        weights.pop("lm_head.weight", None)
    save_file(weights, os.path.join(folder, "model.safetensors"))
    lengths = {"prompt_lengths": torch.tensor(PROMPTS), "answer_lengths": torch.tensor(ANSWERS)}
    expected = {"prompts": prompts, "answers": answers, "logits": logits, **lengths}
    save_file(expected, os.path.join(folder, "expected.safetensors"))


def make(name, kind):
    torch.manual_seed(20260102)
    config = LlamaConfig(**SIZES, **kind, rope_parameters={"rope_type": "default", "rope_theta": THETA})
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + ("norm" in key))
    folder = os.path.join(HERE, name)
    record(model, folder, kind["tie_word_embeddings"], SIZES["vocab_size"])
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as text:
        json.dump({"model_type": "llama", **SIZES, **kind, "rope_theta": THETA}, text, indent=1)
        text.write("\n")


if __name__ == "__main__":
    for name, kind in KINDS.items():
        make(name, kind)
