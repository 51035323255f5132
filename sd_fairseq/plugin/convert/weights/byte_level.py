"""The ``tokenizer.json`` of a byte-level BPE (GPT-2's kind) out of its tokens and merges."""

from __future__ import annotations

import json
import os
from typing import Dict, List, Optional

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.user_files import numbered_lines, read_json_object

PARTS = ("vocab.json", "merges.txt")  # how GPT-2's tokenizer is published, for fairseq too
END = "<|endoftext|>"


def tokenizer_content(vocabulary: Dict[str, int], merges: List[str], special: List[str], digits: bool) -> str:
    """Returns the content of the file.

    Args:
        vocabulary: token -> id.
        merges: two tokens a line, most important first.
        special: tokens that are no text.
        digits: every digit stands alone.
    """
    about_token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": vocabulary[token], "content": token, **about_token} for token in special]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    before = [{"type": "Digits", "individual_digits": True}] if digits else []
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*before, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False)


def read_parts(folder: str) -> Optional[str]:
    """Returns the content for a folder with :data:`PARTS`, None = they are not there.

    Raises:
        InputError: they are none.
    """
    vocabulary_path, merges_path = (os.path.join(folder, name) for name in PARTS)
    if not (os.path.isfile(vocabulary_path) and os.path.isfile(merges_path)):
        return None
    vocabulary = read_json_object(vocabulary_path)
    if not all(isinstance(index, int) for index in vocabulary.values()):
        raise InputError(f"{vocabulary_path}: expected tokens and their numbers")
    lines = (line.rstrip("\r\n") for _, line in numbered_lines(merges_path))
    merges = [line for line in lines if line and not line.startswith("#version")]
    return tokenizer_content(vocabulary, merges, [END] if END in vocabulary else [], digits=False)
