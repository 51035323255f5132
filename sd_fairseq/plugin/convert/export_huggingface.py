"""Writes a switchable T5, GPT-2 or LLaMA under one fixed path as a folder of Hugging Face's.

A layer with nothing to run is left out, and sub-layers of neighbouring layers share one where their order allows it. A
sub-layer that is skipped alone remains with a zero output projection: Hugging Face's layers have no switch.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Dict, List, Tuple

from fairseq.data import Dictionary
from torch import Tensor

from sd_fairseq.plugin.convert.export import Switchable, choose_path, stock_weights
from sd_fairseq.plugin.convert.export_layers import Norms, StockLayer, describe_changes, nearest_path, stock_layers
from sd_fairseq.plugin.convert.import_model import TOKENIZERS
from sd_fairseq.plugin.convert.weights import gpt2, llama, t5
from sd_fairseq.plugin.convert.weights.safetensors import write_safetensors
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.fixed_path import TOKENS, Path
from sd_fairseq.plugin.models.switchable_model import POLICY_KEYS
from sd_fairseq.plugin.text.identity_dictionary import IdentityDictionary, is_identity
from sd_fairseq.whole_files import check_places, copy_whole, write_json, write_with

FAMILIES: Dict[str, Any] = {family.ARCHITECTURE: family for family in (t5, gpt2, llama)}
FILES = ("config.json", "model.safetensors")


def export_folder(source: Switchable, options: argparse.Namespace) -> List[str]:
    """Writes configuration, weights and, where there is one beside the checkpoint, the tokenizer.

    Args:
        source: the switchable checkpoint.
        options: the command's.

    Returns:
        Lines that say what was done.

    Raises:
        InputError: a path that drops tokens, no dictionary, or a place that cannot be written.
    """
    family = FAMILIES.get("_".join(str(source.args.arch).split("_")[:2]))
    if family is None:
        raise InputError(f"no counterpart of a {source.args.arch} among Hugging Face's models is known")
    if os.path.exists(options.output) and not os.path.isdir(options.output):
        raise InputError(f"{options.output}: expected a folder to write to")
    folder = os.path.dirname(options.checkpoint) or "."
    tokenizers = [name for name in TOKENIZERS if os.path.isfile(os.path.join(folder, name))][:1]
    outputs = [os.path.join(options.output, name) for name in (*FILES, *tokenizers)]
    inputs = [options.checkpoint, options.trace, *(os.path.join(folder, name) for name in tokenizers)]
    check_places(outputs, inputs, makes_folders=True)
    dictionary = find_dictionary(source, folder)
    wanted = choose_path(source, options.path, options.trace)
    path = nearest_path(wanted, source.space, source.norms) if options.nearest else wanted
    layers, weights = freeze(source, path)
    sizes = {**vars(source.args), **{f"{stack}_layers": len(found) for stack, found in layers.items()}}
    theirs = family.their_weights(weights, sizes)
    config = {**family.their_config(sizes), **ids_of(dictionary, source, weights)}
    os.makedirs(options.output, exist_ok=True)
    write_with(outputs[1], lambda stream: write_safetensors(stream, theirs))
    for name in tokenizers:
        copy_whole(os.path.join(folder, name), os.path.join(options.output, name))
    write_json(outputs[0], config)
    return [
        *(f"nearest path: {change}" for change in describe_changes(wanted, path)),
        "path: " + ",".join(f"{site}={keeps}" for site, keeps in path.items()),
        *describe(source, layers, weights, f"{options.output}: {config['architectures'][0]}"),
    ]


def freeze(source: Switchable, path: Path) -> Tuple[Dict[str, List[StockLayer]], Dict[str, Tensor]]:
    """Returns the layers of each stack, and our weights of them.

    Raises:
        InputError: the path drops tokens.
    """
    if path[TOKENS] != "keep":
        raise InputError(f"Hugging Face's models cannot drop source tokens ({path[TOKENS]}); --nearest keeps them all")
    pre_norm = Norms(before=True)
    if source.space.tied:  # one stack, whose switches are the prompt's
        found = stock_layers(path, "encoder", pre_norm)
        names = {"encoder_attention": "decoder_attention", "encoder_ffn": "decoder_ffn"}
        layers = {"decoder": [{names[site]: place for site, place in layer.items()} for layer in found]}
    else:
        layers = {stack: stock_layers(path, stack, pre_norm) for stack in ("encoder", "decoder")}
    return layers, stock_weights(source.weights, layers)


def find_dictionary(source: Switchable, folder: str) -> Dictionary:
    """Reads the dictionary beside the checkpoint, or that of its training's data.

    Raises:
        InputError: there is none.
    """
    places = [folder, str(source.task.get("data") or "").split(":")[0]]
    for place in places:
        for name in ("dict.txt", f"dict.{source.task.get('target_lang')}.txt"):
            path = os.path.join(place, name)
            if place and os.path.isfile(path):
                return IdentityDictionary.load(path) if is_identity(path) else Dictionary.load(path)
    looked = " or ".join(place for place in places if place)
    raise InputError(f"no dict.txt in {looked}, which says the ids of end and padding; put it beside the checkpoint")


def ids_of(dictionary: Dictionary, source: Switchable, weights: Dict[str, Tensor]) -> Dict[str, Any]:
    """Returns the entries of ``config.json`` about ids; an added padding symbol is none of the model's."""
    rows = weights["decoder.embed_tokens.weight"].size(0)
    expected = len(dictionary) - getattr(source.args, "added_symbols", 0)
    if rows != expected:
        raise InputError(f"the model has {rows} ids, the dictionary beside it {expected}")
    padding = dictionary.pad() if dictionary.pad() < rows else None
    ids = {"vocab_size": rows, "eos_token_id": dictionary.eos(), "pad_token_id": padding}
    if source.space.tied:
        return {**ids, "bos_token_id": dictionary.bos()}
    return {**ids, "decoder_start_token_id": dictionary.pad()}


def describe(
    source: Switchable, layers: Dict[str, List[StockLayer]], weights: Dict[str, Tensor], about: str
) -> List[str]:
    """Says how much is left, and how much of it does nothing."""
    before = " + ".join(str(getattr(source.args, f"{stack}_layers")) for stack in layers)
    after = " + ".join(str(len(found)) for found in layers.values())
    own = sum(value.numel() for key, value in source.weights.items() if not key.startswith(POLICY_KEYS))
    share = sum(value.numel() for value in weights.values()) / max(own, 1)
    lines = [f"{about}, {before} layers became {after}, {share:.1%} of the parameters"]
    idle = sum(not place.runs for found in layers.values() for layer in found for place in layer.values())
    if idle:
        lines.append(f"{idle} skipped sub-layers stay, with zero output projections: they change and save nothing")
    return lines
