"""Makes a switchable checkpoint of another package's pretrained model: ``sd-import SOURCE OUT``.

SOURCE is a folder: Hugging Face's (``config.json`` and weights) or of ONNX graphs (``encoder.onnx``, ``decoder.onnx``).
The checkpoint has no policy; a model that loads it starts with a fresh one, every switch open.
"""

from __future__ import annotations

import argparse
import os
import shutil
from typing import Any, Dict, List, NamedTuple, Optional

from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import Tensor

import sd_fairseq.plugin.models.switchable_llama
import sd_fairseq.plugin.models.switchable_t5  # noqa: F401
from sd_fairseq.plugin.convert.plain_checkpoint import plain_checkpoint, plain_options, write_checkpoint
from sd_fairseq.plugin.convert.weights import huggingface, llama, onnx, t5
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.text.identity_dictionary import IdentityDictionary

FAMILIES: Dict[str, Any] = {"t5": t5, "mt5": t5, "llama": llama}  # by Hugging Face's model_type
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
        tokenizer: its file, or None.
    """

    architecture: str
    options: Dict[str, Any]
    weights: Dict[str, Tensor]
    parts: Dict[str, int]
    tokenizer: Optional[str]

    @property
    def dictionary(self) -> IdentityDictionary:
        """The model's ids, and behind them what was added."""
        rows = self.weights["decoder.embed_tokens.weight"].size(0)
        return IdentityDictionary.of_size(rows + self.options.get("added_symbols", 0), self.parts)


def read_source(folder: str) -> Source:
    """Reads a folder of either kind.

    Raises:
        InputError: no such folder, or not one of a model that we have.
        ModuleNotFoundError: ``onnx`` is needed and not installed.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder, expected one of Hugging Face's, or of encoder.onnx, decoder.onnx")
    config: Dict[str, Any] = {}
    family: Any = t5
    if onnx.is_package(folder):
        weights = onnx.read_package(folder)
        options = t5.options_of_weights(weights)
    elif os.path.isfile(os.path.join(folder, "config.json")):
        config = huggingface.read_config(folder)
        family = FAMILIES.get(config.get("model_type", ""))
        if family is None:
            known = ", ".join(sorted(FAMILIES))
            raise InputError(f"config.json: model_type is {config.get('model_type')!r}, expected one of {known}")
        options = family.options_of_config(config)
        weights = huggingface.read_weights(folder)
    else:
        raise InputError(f"{folder}: neither config.json nor encoder.onnx and decoder.onnx in it")
    translated = family.translate(weights, options)
    if "decoder.embed_tokens.weight" not in translated:
        raise InputError(f"{folder}: weights without an embedding")
    rows = translated["decoder.embed_tokens.weight"].size(0)
    parts = family.parts_of(config, rows)
    if family is llama:
        options["added_symbols"] = max(0, max(parts.values()) + 1 - rows)
    tokenizers = [os.path.join(folder, name) for name in TOKENIZERS]
    found = next((path for path in tokenizers if os.path.isfile(path)), None)
    return Source(family.ARCHITECTURE, options, translated, parts, found)


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
    if os.path.exists(output) and (not os.path.isdir(output) or os.path.samefile(folder, output)):
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
        name = os.path.basename(source.tokenizer)
        shutil.copyfile(source.tokenizer, os.path.join(output, name))
        lines.append(f"{output}/{name}: for --bpe sd_tokenizer --sd-tokenizer")
    else:
        lines.append(f"no tokenizer in {folder} (looked for {', '.join(TOKENIZERS)})")
    return lines
