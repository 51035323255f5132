"""Reads fairseq's dictionaries: what fairseq reads, and one line where it would end in a traceback."""

from __future__ import annotations

import io
import os

from fairseq.data import Dictionary

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.user_files import read_text


def read_dictionary(path: str) -> Dictionary:
    """Reads a dictionary; blank lines and a mark of byte order say nothing.

    Args:
        path: lines of symbol and count, as ``fairseq-preprocess`` writes them.

    Raises:
        InputError: unreadable, a line of another form, or a symbol that stands twice.
    """
    lines = io.StringIO(read_text(path), newline=None).readlines()
    dictionary = Dictionary()
    try:
        dictionary.add_from_file(io.StringIO("".join(line for line in lines if line.strip())))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: no dictionary of fairseq ({str(error).split('. ')[0]})") from error
    return dictionary


def check_dictionaries(folder: str) -> None:
    """Refuses a folder that is none, or holds no dictionary.

    Raises:
        InputError: naming it and what is there.
    """
    if not os.path.isdir(folder):
        kind = "a file" if os.path.exists(folder) else "no such folder"
        raise InputError(f"{folder}: {kind}, expected a folder of binarised data")
    if not any(name.startswith("dict.") and name.endswith(".txt") for name in os.listdir(folder)):
        raise InputError(f"{folder}: holds no dictionary (dict.*.txt), expected a folder of binarised data")
