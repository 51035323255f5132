"""The same random BART in Hugging Face transformers and CTranslate2, where they are installed.

fairseq installs torchaudio, whose CUDA build keeps transformers from being imported beside the CPU build of torch:
``make bench`` takes it out of its own environment. Nothing in BART needs it.
"""

import importlib.util
import os
from typing import Any, Callable, Dict, List

import measure
import torch


def build(names: List[str], setting: Any, folder: str) -> Dict[str, Callable[[], Any]]:
    """Returns what generates, by name, for the peers of ``names`` that are installed.

    Args:
        names: of ``transformers`` and ``ctranslate2``.
        setting: a :class:`generation.Setting`.
        folder: for converted models.
    """
    built: Dict[str, Callable[[], Any]] = {}
    for name, make in (("transformers", transformers_peers), ("ctranslate2", ctranslate2_peers)):
        if name not in names:
            continue
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: left out")
            continue
        built.update(make(setting, folder))
    return built


def transformers_peers(setting: Any, _: str) -> Dict[str, Callable[[], Any]]:
    """transformers in float32 and bfloat16."""
    from transformers import BartConfig, BartForConditionalGeneration

    models = setting.models
    if "transformers" not in models.built:
        bart = models.bart("fp32")
        args = bart.args
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
        weights = {"model." + name: value for name, value in bart.state_dict().items() if "embed_tokens" not in name}
        for name in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
            weights[name + ".weight"] = bart.encoder.embed_tokens.weight
        weights["final_logits_bias"] = torch.zeros(1, len(models.dictionary))
        both = {}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            model = BartForConditionalGeneration(config)
            found = model.load_state_dict(weights, strict=False)
            missing = [key for key in found.missing_keys if "version" not in key]
            assert not missing, f"weights without a value: {missing[:3]}"
            both[name] = model.to(dtype).eval()
        models.built["transformers"] = both

    def run(model: Any) -> Any:
        return model.generate(
            setting.net_input["src_tokens"],
            attention_mask=torch.ones_like(setting.net_input["src_tokens"]),
            num_beams=setting.beam,
            min_new_tokens=setting.target,
            max_new_tokens=setting.target,
            no_repeat_ngram_size=3,
            length_penalty=2.0,
        )

    both = models.built["transformers"]
    return {f"transformers {name}": (lambda model=model: run(model)) for name, model in both.items()}


def ctranslate2_peers(setting: Any, folder: str) -> Dict[str, Callable[[], Any]]:
    """CTranslate2 in float32 and int8, converted from a fairseq checkpoint of the same weights."""
    import ctranslate2

    models = setting.models
    if "ctranslate2" not in models.built:
        checkpoint = write_checkpoint(models, folder)
        converter = ctranslate2.converters.FairseqConverter(
            checkpoint, folder, source_lang="source", target_lang="target"
        )
        both = {}
        for name, kind in (("fp32", "float32"), ("int8", "int8")):
            converted = os.path.join(folder, name)
            converter.convert(converted, quantization=kind, force=True)
            threads = torch.get_num_threads()
            both[name] = ctranslate2.Translator(converted, compute_type=kind, intra_threads=threads, inter_threads=1)
        models.built["ctranslate2"] = both
    symbols = models.dictionary.symbols
    sources = [[symbols[token] for token in one.tolist()] for one in setting.net_input["src_tokens"][:, :-1]]

    def run(translator: Any) -> Any:
        return translator.translate_batch(
            sources,
            beam_size=setting.beam,
            min_decoding_length=setting.target,
            max_decoding_length=setting.target,
            no_repeat_ngram_size=3,
            length_penalty=2.0,
            max_input_length=0,
        )

    both = models.built["ctranslate2"]
    return {f"ctranslate2 {name}": (lambda translator=one: run(translator)) for name, one in both.items()}


def write_checkpoint(models: Any, folder: str) -> str:
    """Saves the model as fairseq would, with its dictionaries beside it."""
    for side in ("source", "target"):
        models.dictionary.save(os.path.join(folder, f"dict.{side}.txt"))
    args = measure.model_arguments("bart_base", models.size, left_pad_source=True, left_pad_target=False)
    path = os.path.join(folder, "model.pt")
    torch.save({"args": args, "cfg": None, "model": models.bart("fp32").state_dict()}, path)
    return path
