"""The same random BART in Hugging Face transformers and CTranslate2, where they are installed.

fairseq installs torchaudio, whose CUDA build keeps transformers from being imported beside the CPU build of torch:
``make bench`` takes it out of its own environment. Nothing in BART needs it.
"""

import importlib.util
import os
from typing import Any, Callable, Dict

import measure
import torch


def build(software: str, precision: str, setting: Any, folder: str) -> Dict[str, Callable[[], Any]]:
    """Returns what generates, by name; nothing where the software is not installed.

    Args:
        software: ``transformers`` or ``ctranslate2``.
        precision: fp32, bf16 or int8.
        setting: a :class:`generation.Setting`.
        folder: for converted models.
    """
    if importlib.util.find_spec(software) is None:
        print(f"{software} is not installed: left out")
        return {}
    make = {"transformers": transformers_peer, "ctranslate2": ctranslate2_peer}[software]
    name = f"{software} {precision}"
    if name not in setting.models.built:
        setting.models.built[name] = make(setting.models, precision, folder)
    run = setting.models.built[name]
    return {name: lambda: run(setting)}


def transformers_peer(models: Any, precision: str, _: str) -> Callable[[Any], Any]:
    """Hugging Face transformers."""
    from transformers import BartConfig, BartForConditionalGeneration

    args, weights = models.switchable.args, models.weights()
    config = BartConfig(
        vocab_size=len(models.dictionary),
        d_model=args.encoder_embed_dim,
        encoder_layers=args.encoder_layers,
        decoder_layers=args.decoder_layers,
        encoder_attention_heads=args.encoder_attention_heads,
        decoder_attention_heads=args.decoder_attention_heads,
        encoder_ffn_dim=args.encoder_ffn_embed_dim,
        decoder_ffn_dim=args.decoder_ffn_embed_dim,
        max_position_embeddings=args.max_source_positions,
        forced_bos_token_id=None,
    )
    renamed = {"model." + name: value for name, value in weights.items() if "embed_tokens" not in name}
    for name in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        renamed[name + ".weight"] = weights["encoder.embed_tokens.weight"]
    renamed["final_logits_bias"] = torch.zeros(1, len(models.dictionary))
    model = BartForConditionalGeneration(config)
    missing = model.load_state_dict(renamed, strict=False).missing_keys
    assert not missing, f"weights without a value: {missing[:3]}"
    model = model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[precision]).eval()

    def run(setting: Any) -> Any:
        tokens = setting.net_input["src_tokens"]
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=setting.beam,
            min_new_tokens=setting.target,
            max_new_tokens=setting.target,
            no_repeat_ngram_size=3,
            length_penalty=2.0,
        )
        assert found.size(1) == setting.target + 1, f"{found.size(1) - 1} tokens for {setting.target}"
        return found

    return run


def ctranslate2_peer(models: Any, precision: str, folder: str) -> Callable[[Any], Any]:
    """CTranslate2, converted from a fairseq checkpoint of the same weights."""
    import ctranslate2

    converter = ctranslate2.converters.FairseqConverter(
        write_checkpoint(models, folder), folder, source_lang="source", target_lang="target"
    )
    kind, converted = {"fp32": "float32", "int8": "int8"}[precision], os.path.join(folder, precision)
    converter.convert(converted, quantization=kind, force=True)
    threads, symbols = torch.get_num_threads(), models.dictionary.symbols
    translator = ctranslate2.Translator(converted, compute_type=kind, intra_threads=threads, inter_threads=1)

    def run(setting: Any) -> Any:
        found = translator.translate_batch(
            [[symbols[token] for token in one.tolist()] for one in setting.net_input["src_tokens"][:, :-1]],
            beam_size=setting.beam,
            min_decoding_length=setting.target,
            max_decoding_length=setting.target,
            no_repeat_ngram_size=3,
            length_penalty=2.0,
            max_input_length=0,
        )
        lengths = {len(one.hypotheses[0]) for one in found}
        assert lengths == {setting.target}, f"{lengths} tokens for {setting.target}"
        return found

    return run


def write_checkpoint(models: Any, folder: str) -> str:
    """Saves the model as fairseq would, with its dictionaries beside it."""
    for side in ("source", "target"):
        models.dictionary.save(os.path.join(folder, f"dict.{side}.txt"))
    args = measure.model_arguments("bart_base", models.size, left_pad_source=True, left_pad_target=False)
    path = os.path.join(folder, "model.pt")
    torch.save({"args": args, "cfg": None, "model": models.weights()}, path)
    return path
