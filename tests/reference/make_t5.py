"""Makes ``tests/reference/t5``: two tiny T5s with random weights, and what Hugging Face's code computes with them.

``python tests/reference/make_t5.py``, where transformers can be imported; it needs safetensors and tokenizers, too.
"""

import json
import os

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import T5Config, T5ForConditionalGeneration

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "t5")
SIZES = dict(vocab_size=48, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=3)
SIZES.update(relative_attention_num_buckets=8, relative_attention_max_distance=20)
KINDS = {
    "v1_1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "v1_0": dict(feed_forward_proj="relu", tie_word_embeddings=True),
}
SOURCE_LENGTHS, TARGET_LENGTHS = (40, 23, 9, 2), (25, 7, 12, 3)


def randomise(model):
    """No weight keeps a value, such as 1 for a norm, with which a mistake would not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + ("layer_norm" in name))


def pad(lengths, first):
    rows = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in zip(rows, lengths):
        row[:length] = torch.randint(3, SIZES["vocab_size"], (length,))
        if first is None:
            row[length - 1] = 1
        else:
            row[0] = first
    return rows


def make(name, kind):
    torch.manual_seed(20260101)
    config = T5Config(**SIZES, **kind, dropout_rate=0.0)
    config.tie_word_embeddings = config.scale_decoder_outputs = kind["tie_word_embeddings"]
    model = T5ForConditionalGeneration(config).eval()
    model.encoder.embed_tokens.weight = model.decoder.embed_tokens.weight = model.shared.weight
    randomise(model)
    source, target = pad(SOURCE_LENGTHS, None), pad(TARGET_LENGTHS, 0)
    with torch.no_grad():
        output = model(input_ids=source, attention_mask=source.ne(0).long(), decoder_input_ids=target)
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    weights = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    copies += ["lm_head.weight"] if kind["tie_word_embeddings"] else []
    save_file({k: v for k, v in weights.items() if k not in copies}, os.path.join(folder, "model.safetensors"))
    states = output.encoder_last_hidden_state
    found = {"source": source, "target": target, "logits": output.logits, "encoder_states": states}
    save_file({key: value.contiguous() for key, value in found.items()}, os.path.join(folder, "expected.safetensors"))
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as text:
        json.dump({"model_type": "t5", **SIZES, **kind, "pad_token_id": 0, "eos_token_id": 1}, text, indent=1)
        text.write("\n")


def make_tokenizer():
    words = ["<pad>", "</s>", "<unk>"] + [f"w{index}" for index in range(3, SIZES["vocab_size"])]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:3])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(4)  # as a published one has it, which must not cut a text short
    tokenizer.save(os.path.join(HERE, "v1_1", "tokenizer.json"))


if __name__ == "__main__":
    for name, kind in KINDS.items():
        make(name, kind)
    make_tokenizer()
