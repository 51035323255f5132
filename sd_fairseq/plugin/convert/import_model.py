"""Makes a switchable checkpoint of another package's pretrained model: ``sd-import SOURCE OUT``.

SOURCE is a folder, Hugging Face's (``config.json`` and weights) or of ONNX graphs (``encoder.onnx``, ``decoder.onnx``),
a ``.gguf`` file, or a checkpoint of fairseq's ``transformer_lm``. The checkpoint has no policy; a model that loads it
starts with a fresh one, every switch open.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import Tensor

import sd_fairseq.plugin.models.switchable_gpt2
import sd_fairseq.plugin.models.switchable_llama
import sd_fairseq.plugin.models.switchable_t5  # noqa: F401
from sd_fairseq.plugin.convert.plain_checkpoint import plain_checkpoint, plain_options, write_checkpoint
from sd_fairseq.plugin.convert.weights import (
    byte_level,
    gguf,
    gpt2,
    huggingface,
    llama,
    llama_gguf,
    onnx,
    t5,
    transformer_lm,
)
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.text.identity_dictionary import IdentityDictionary
from sd_fairseq.user_files import open_input
from sd_fairseq.whole_files import write_with

FAMILIES: Dict[str, Any] = {"t5": t5, "mt5": t5, "gpt2": gpt2, "llama": llama}  # by Hugging Face's model_type
EMBEDDING = "decoder.embed_tokens.weight"
TOKENIZERS = ("tokenizer.json", "spiece.model")
# fairseq's commands look for one of each language; all are the same
DICTIONARIES = ("dict.txt", "dict.source.txt", "dict.target.txt")


class Source(NamedTuple):
    """A pretrained model.

    Args:
        architecture: of our model.
        options: of our model.
        weights: under our names.
        parts: names of fairseq's symbols -> the ids that play their part.
        tokenizer: name and content of its file, or None.
        symbols: the dictionary; None = the ids are the symbols.
    """

    architecture: str
    options: Dict[str, Any]
    weights: Dict[str, Tensor]
    parts: Dict[str, int]
    tokenizer: Optional[Tuple[str, bytes]] = None
    symbols: Optional[Dictionary] = None

    @property
    def dictionary(self) -> Dictionary:
        """The model's ids, and behind them what was added."""
        if self.symbols is not None:
            return self.symbols
        rows = self.weights[EMBEDDING].size(0)
        return IdentityDictionary.of_size(rows + self.options.get("added_symbols", 0), self.parts)


def read_source(place: str) -> Source:
    """Reads a folder or file of any kind.

    Raises:
        InputError: no such place, or not one of a model that we have.
        ModuleNotFoundError: ``onnx`` is needed and not installed.
    """
    if os.path.isfile(place) and place.endswith(".gguf"):
        return read_gguf_file(place)
    if os.path.isfile(place) and place.endswith(".pt"):
        return read_fairseq_file(place)
    if not os.path.isdir(place):
        raise InputError(
            f"{place}: no such folder, expected Hugging Face's, encoder.onnx and decoder.onnx, a .gguf or a .pt file"
        )
    tokenizer = read_tokenizer(place)
    if onnx.is_package(place):
        weights = onnx.read_package(place)
        return make_source(t5, {}, t5.options_of_weights(weights), weights, tokenizer)
    if not os.path.isfile(os.path.join(place, "config.json")):
        raise InputError(f"{place}: neither config.json nor encoder.onnx and decoder.onnx in it")
    config = huggingface.read_config(place)
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise InputError(f"config.json: model_type is {config.get('model_type')!r}, expected one of {known}")
    options = family.options_of_config(config)
    return make_source(family, config, options, huggingface.read_weights(place), tokenizer)


def read_gguf_file(path: str) -> Source:
    """Reads a ``.gguf`` file of a LLaMA."""
    file = gguf.read_gguf(path)
    config, tokenizer = llama_gguf.config_of(file), llama_gguf.tokenizer_of(file)
    weights, options = llama_gguf.weights_of(file, config), llama.options_of_config(config)
    content = None if tokenizer is None else ("tokenizer.json", tokenizer.encode("utf-8"))
    return make_source(llama, config, options, weights, content)


def read_fairseq_file(path: str) -> Source:
    """Reads a checkpoint of fairseq's ``transformer_lm``; its ``dict.txt`` stands beside it or with its data."""
    found = transformer_lm.read(path)
    return Source(gpt2.ARCHITECTURE, found["options"], found["weights"], {}, symbols=found["dictionary"])


def make_source(
    family: Any,
    config: Dict[str, Any],
    options: Dict[str, Any],
    weights: Dict[str, Tensor],
    tokenizer: Optional[Tuple[str, bytes]],
) -> Source:
    """Translates weights under Hugging Face's names; ``family``: the module that has its tables."""
    translated = family.translate(weights, options)
    if EMBEDDING not in translated:
        raise InputError("weights without an embedding")
    rows = translated[EMBEDDING].size(0)
    parts = family.parts_of(config, rows)
    added = max(parts.values()) + 1 - rows
    options.update({"added_symbols": added} if added > 0 else {})
    return Source(family.ARCHITECTURE, options, translated, parts, tokenizer)


def read_tokenizer(folder: str) -> Optional[Tuple[str, bytes]]:
    """Returns name and content of a folder's tokenizer, None = there is none."""
    for name in TOKENIZERS:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open_input(path) as stream:
                return name, stream.read()
    content = byte_level.read_parts(folder)
    return None if content is None else (TOKENIZERS[0], content.encode("utf-8"))


def build(source: Source) -> Any:
    """Builds the model, which says whether every weight is there and has its size.

    Raises:
        InputError: a weight that is missing, of another size, or left over.
    """
    args = argparse.Namespace(arch=source.architecture, task="switchable_translation", **source.options)
    args.sd_policy = "dense"  # a policy is for those who train
    ARCH_CONFIG_REGISTRY[source.architecture](args)
    dictionary = source.dictionary
    task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=None)
    model = ARCH_MODEL_REGISTRY[source.architecture].build_model(args, task)
    own = model.state_dict()
    missing = sorted(set(own) - set(source.weights))
    surplus = sorted(set(source.weights) - set(own))
    if missing or surplus:
        what, name = ("is missing", missing[0]) if missing else ("has no place", surplus[0])
        raise InputError(f"{name} {what} ({len(missing)} weights missing, {len(surplus)} without a place)")
    for name, value in source.weights.items():
        if value.shape != own[name].shape:
            raise InputError(f"{name} is of shape {tuple(value.shape)}, expected {tuple(own[name].shape)}")
    model.load_state_dict(source.weights)
    return model.eval()


def import_model(folder: str, output: str) -> List[str]:
    """Writes the checkpoint, its dictionaries and its tokenizer.

    Args:
        folder: see :func:`read_source`.
        output: folder to write to; made where it is absent.

    Returns:
        Lines that say what was done.

    Raises:
        InputError: see :func:`read_source` and :func:`build`.
    """
    if os.path.exists(output) and (not os.path.isdir(output) or os.path.realpath(folder) == os.path.realpath(output)):
        raise InputError(f"{output}: expected another folder to write to")
    source = read_source(folder)
    model, dictionary = build(source), source.dictionary
    os.makedirs(output, exist_ok=True)
    options = {**source.options, "arch": source.architecture, "task": "switchable_translation"}
    languages = {"source_lang": "source", "target_lang": "target"}
    checkpoint = plain_checkpoint(plain_options({**options, **languages}), model.state_dict())
    write_checkpoint(os.path.join(output, "model.pt"), checkpoint)
    for name in DICTIONARIES:
        dictionary.save(os.path.join(output, name))
    count = sum(parameter.numel() for parameter in model.parameters())
    depths = " + ".join(str(options[side]) for side in ("encoder_layers", "decoder_layers") if side in options)
    about = f"{source.architecture}, {depths} layers, {count:,} parameters, dictionary of {len(dictionary):,}"
    lines = [f"{output}/model.pt: {about}"]
    if source.tokenizer is not None:
        name, content = source.tokenizer
        write_with(os.path.join(output, name), lambda stream: stream.write(content))
        lines.append(f"{output}/{name}: for --bpe sd_tokenizer --sd-tokenizer")
    else:
        lines.append(f"no tokenizer in {folder} (looked for {', '.join(TOKENIZERS)})")
    return lines
