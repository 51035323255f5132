"""Makes a switchable checkpoint of another package's pretrained model: ``sd-import SOURCE OUT``.

SOURCE is a folder: Hugging Face's (``config.json`` and weights) or of ONNX graphs (``encoder.onnx``, ``decoder.onnx``).
The checkpoint has no policy; a model that loads it starts with a fresh one, every switch open.
"""

from __future__ import annotations

import argparse
import os
import shutil
from typing import Any, Dict, List, NamedTuple, Optional

from torch import Tensor

from sd_fairseq.plugin.convert.plain_checkpoint import plain_checkpoint, plain_options, write_checkpoint
from sd_fairseq.plugin.convert.weights import huggingface, onnx, t5
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.switchable_t5 import SwitchableT5Model, switchable_t5_architecture
from sd_fairseq.plugin.text.identity_dictionary import IdentityDictionary

TOKENIZERS = ("tokenizer.json", "spiece.model")
# fairseq's commands look for one of each language; all are the same
DICTIONARIES = ("dict.txt", "dict.source.txt", "dict.target.txt")


class Source(NamedTuple):
    """A pretrained model.

    Args:
        options: of our model.
        weights: under our names.
        tokenizer: its file, or None.
    """

    options: Dict[str, Any]
    weights: Dict[str, Tensor]
    tokenizer: Optional[str]


def read_source(folder: str) -> Source:
    """Reads a folder of either kind.

    Raises:
        InputError: no such folder, or not a T5's.
        ModuleNotFoundError: ``onnx`` is needed and not installed.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder, expected one of Hugging Face's, or of encoder.onnx, decoder.onnx")
    if onnx.is_package(folder):
        weights = onnx.read_package(folder)
        options = t5.options_of_weights(weights)
    elif os.path.isfile(os.path.join(folder, "config.json")):
        options = t5.options_of_config(huggingface.read_config(folder))
        weights = huggingface.read_weights(folder)
    else:
        raise InputError(f"{folder}: neither config.json nor encoder.onnx and decoder.onnx in it")
    tokenizers = [os.path.join(folder, name) for name in TOKENIZERS]
    found = next((path for path in tokenizers if os.path.isfile(path)), None)
    return Source(options, t5.translate(weights, options["share_decoder_input_output_embed"]), found)


def build(source: Source, dictionary: IdentityDictionary) -> SwitchableT5Model:
    """Builds the model, which says whether every weight is there and has its size.

    Raises:
        InputError: a weight that is missing, of another size, or left over.
    """
    args = argparse.Namespace(arch="switchable_t5", task="switchable_translation", **source.options)
    args.sd_policy = "dense"  # a policy is for those who train
    switchable_t5_architecture(args)
    task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=None)
    model = SwitchableT5Model.build_model(args, task)
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
    dictionary = IdentityDictionary.of_size(source.weights["encoder.embed_tokens.weight"].size(0), t5.PARTS)
    model = build(source, dictionary)
    os.makedirs(output, exist_ok=True)
    options = {**source.options, "arch": "switchable_t5", "task": "switchable_translation"}
    languages = {"source_lang": "source", "target_lang": "target"}
    checkpoint = plain_checkpoint(plain_options({**options, **languages}), model.state_dict())
    write_checkpoint(os.path.join(output, "model.pt"), checkpoint)
    for name in DICTIONARIES:
        dictionary.save(os.path.join(output, name))
    count = sum(parameter.numel() for parameter in model.parameters())
    depths = f"{options['encoder_layers']} + {options['decoder_layers']} layers"
    lines = [f"{output}/model.pt: switchable_t5, {depths}, {count:,} parameters, dictionary of {len(dictionary):,}"]
    if source.tokenizer is not None:
        name = os.path.basename(source.tokenizer)
        shutil.copyfile(source.tokenizer, os.path.join(output, name))
        lines.append(f"{output}/{name}: for --bpe sd_tokenizer --sd-tokenizer")
    else:
        lines.append(f"no tokenizer in {folder} (looked for {', '.join(TOKENIZERS)})")
    return lines
