"""Reads the user's files, all of them: one rule for compression, text, blank lines, JSON and what is said of a fault.

Whatever the bytes are, the outcome is a value or an InputError that names the file and, where there is one, the line.
A mark of byte order and blank lines say nothing. ``.gz`` is decompressed.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from contextlib import contextmanager
from typing import Any, BinaryIO, Dict, Iterator, List, Tuple, cast

from sd_fairseq.errors import InputError

MARK = b"\xef\xbb\xbf"  # of byte order


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """Opens a file to read bytes from, decompressed if it ends in ``.gz``.

    Raises:
        InputError: it cannot be opened, or not be read to where the block reads it.
    """
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as stream:
            yield cast(BinaryIO, stream)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_text(path: str) -> str:
    """Reads a whole UTF-8 file, line ends as they are.

    Raises:
        InputError: unreadable, or no UTF-8 text; with the line.
    """
    with open_input(path) as stream:
        content = stream.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text (byte {content[error.start]:#04x})") from error


def numbered_lines(path: str) -> Iterator[Tuple[int, str]]:
    """Yields line number, from 1, and line with its end; only a line feed ends a line.

    Raises:
        InputError: unreadable, or no UTF-8 text; with the line.
    """
    with open_input(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, (line[len(MARK) :] if number == 1 and line.startswith(MARK) else line).decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: not UTF-8 text (byte {line[error.start]:#04x})") from error


def parse_json(text: str, place: str) -> Any:
    """Parses JSON.

    Args:
        text: a JSON value.
        place: file, and line where there are several values, for messages.

    Raises:
        InputError: it is none, or holds half of a surrogate pair, which no file can hold.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not valid JSON ({error})") from error
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{place}: holds half of a surrogate pair, which is no character") from error
    return value


def read_json_object(path: str) -> Dict[str, Any]:
    """Reads a file of one JSON object.

    Raises:
        InputError: unreadable, or another thing.
    """
    return check_object(parse_json(read_text(path), path), path)


def read_json_lines(path: str) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Yields place (file and line) and JSON object of every line that is not blank.

    Raises:
        InputError: unreadable, or a line that is another thing.
    """
    for number, line in numbered_lines(path):
        if line.strip():
            place = f"{path}:{number}"
            yield place, check_object(parse_json(line, place), place)


def check_object(value: Any, place: str) -> Dict[str, Any]:
    """Returns a JSON object.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, dict):
        raise InputError(f"{place}: found a JSON {type(value).__name__}, expected an object")
    return value


def read_table(path: str, delimiter: str) -> Iterator[Tuple[str, Dict[str, str]]]:
    """Yields place (file and line) and column -> cell of a table with a header.

    Args:
        path: the file.
        delimiter: ``,`` = CSV, with quotes; a tab = TSV as GLUE has it, without.

    Raises:
        InputError: unreadable, a column named twice, a line of another number of cells, or quotes that do not match.
    """
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # a cell may hold a book
    quoting: Any = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    header: List[str] = []
    last = 1
    try:
        for cells in reader:
            number, last = last, reader.line_num + 1  # a quoted cell may hold line ends
            if not cells or (len(cells) == 1 and not cells[0].strip()):
                continue
            place = f"{path}:{number}"
            if not header:
                header = cells
                twice = [name for name in header if header.count(name) > 1]
                if twice:
                    raise InputError(f"{place}: two columns are called {twice[0]!r}")
            elif len(cells) != len(header):
                raise InputError(f"{place}: {len(cells)} columns, the header has {len(header)}")
            else:
                yield place, dict(zip(header, cells))
    except csv.Error as error:
        raise InputError(f"{path}:{last}: {error}") from error
