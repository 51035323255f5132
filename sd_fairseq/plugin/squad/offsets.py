"""Tokens of a text with the characters that each of them stands for: GPT-2's BPE and SentencePiece.

Both tokenisers give what fairseq's own encoders give; here every token knows its place in the text as it was written,
before any normalisation.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

from sd_fairseq.plugin.guards.errors import InputError

GPT2_FILES = ("encoder.json", "vocab.bpe")
SENTENCEPIECE_FILE = "sentencepiece.model"


@dataclass(frozen=True)
class Tokens:
    """A text in tokens.

    Token i stands for the characters from ``begins[i]`` to before ``ends[i]``. Begins and ends never decrease, the
    first token begins at 0, the last one ends with the text, and no character lies between two tokens. Several tokens
    may stand for one character (bytes of a rare one, ``½`` read as ``1/2``): each of them has that character whole.

    Args:
        pieces: as fairseq's dictionaries have them.
        begins, ends: characters, from 0.
    """

    pieces: Tuple[str, ...]
    begins: Tuple[int, ...]
    ends: Tuple[int, ...]

    def cover(self, begin: int, end: int) -> Tuple[int, int]:
        """Finds the fewest tokens that hold the characters from ``begin`` to before ``end``.

        Returns:
            First and last token.
        """
        return bisect_right(self.ends, begin), bisect_left(self.begins, end) - 1


class GPT2Tokeniser:
    """GPT-2's byte-level BPE, as fairseq's ``--bpe gpt2``.

    Args:
        encoder_json, vocab_bpe: paths of its two files.
    """

    def __init__(self, encoder_json: str, vocab_bpe: str):
        from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

        self.encoder = get_encoder(encoder_json, vocab_bpe)

    def tokenise(self, text: str) -> Tokens:
        """Splits a text that is not empty."""
        ids: List[int] = self.encoder.encode(text)
        sizes = [len(self.encoder.decoder[one]) for one in ids]  # one symbol a byte
        character_of: List[int] = []  # of each byte
        for index, character in enumerate(text):
            character_of += [index] * len(character.encode("utf-8"))
        begins, ends, place = [], [], 0
        for size in sizes:
            begins.append(character_of[place])
            place += size
            ends.append(character_of[place - 1] + 1)
        return Tokens(tuple(map(str, ids)), tuple(begins), tuple(ends))


class SentencePieceTokeniser:
    """A SentencePiece model, as fairseq's ``--bpe sentencepiece``.

    Args:
        model: path of the model.

    Raises:
        InputError: not such a model.
    """

    def __init__(self, model: str):
        import sentencepiece

        try:
            self.processor: Any = sentencepiece.SentencePieceProcessor(model_file=model)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{model}: no SentencePiece model ({str(error).splitlines()[0]})") from error

    def tokenise(self, text: str) -> Tokens:
        """Splits a text that is not empty.

        SentencePiece leaves white space at both ends, and what it normalises to nothing, to no piece: the piece before
        takes it (at the front the one after).
        """
        pieces, begins = self._split(text)
        if not pieces:
            return Tokens((), (), ())
        begins = [0, *begins[1:]]
        ends = [*begins[1:], len(text)]
        for index in range(len(pieces) - 2, -1, -1):  # a piece without a character of its own shares the next one's
            if ends[index] == begins[index]:
                ends[index] = ends[index + 1]
        for index in range(1, len(pieces)):  # at the very end there is no next one
            if ends[index] == begins[index]:
                begins[index] = begins[index - 1]
        return Tokens(tuple(pieces), tuple(begins), tuple(ends))

    def _split(self, text: str) -> Tuple[List[str], List[int]]:
        """Returns the pieces and the character that each begins at."""
        try:
            found = self.processor.encode(text, out_type="offset_mapping")
            return found["pieces"], [begin for begin, _ in found["offsets"]]
        except (ValueError, RuntimeError):  # SentencePiece before 0.2.2
            pieces = self.processor.encode(text, out_type="immutable_proto").pieces
            return [one.piece for one in pieces], [one.begin for one in pieces]


def load_tokeniser(folder: str) -> Any:
    """Loads what a data folder holds: ``sentencepiece.model``, or ``encoder.json`` and ``vocab.bpe``.

    Raises:
        InputError: neither, or an unreadable model.
    """
    model = os.path.join(folder, SENTENCEPIECE_FILE)
    if os.path.isfile(model):
        return SentencePieceTokeniser(model)
    paths = [os.path.join(folder, name) for name in GPT2_FILES]
    for path in paths:
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file, and no {SENTENCEPIECE_FILE}; examples/squad/prepare.py puts them")
    return GPT2Tokeniser(*paths)


def bpe_options(folder: str) -> Dict[str, str]:
    """Returns what fairseq's hub interface has to be told about a data folder's tokeniser."""
    if os.path.isfile(os.path.join(folder, SENTENCEPIECE_FILE)):
        return {"bpe": "sentencepiece", "sentencepiece_model": os.path.join(folder, SENTENCEPIECE_FILE)}
    encoder_json, vocab_bpe = (os.path.join(folder, name) for name in GPT2_FILES)
    return {"bpe": "gpt2", "gpt2_encoder_json": encoder_json, "gpt2_vocab_bpe": vocab_bpe}
