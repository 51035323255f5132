"""Halve a validation set: odd lines stay `valid` (early stopping, everything that is tuned), even lines become `test`.

    python examples/tradeoff/split.py DATA OUT

DATA holds train.jsonl.gz and valid.jsonl.gz; OUT gets {train,valid,test}.jsonl.gz, the same bytes every time. A line
belongs to its half by its position alone, so the held-out list is the same for everyone who has the same file.
"""

import argparse
import gzip
import os
import sys
import zlib
from typing import Dict, List


class DataError(ValueError):
    """Something about the input that its owner can mend; the message is one line."""


def read_lines(path: str) -> List[bytes]:
    """Reads the lines of a gzip file.

    Raises:
        DataError: not there, not gzip, cut short, empty, or with an empty line.
    """
    try:
        with gzip.open(path, "rb") as text:
            content = text.read()
    except FileNotFoundError as error:
        raise DataError("{}: no such file".format(path)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("{}: cannot be read as gzip ({})".format(path, error)) from error
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise DataError("{}: holds no pairs".format(path))
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError("{}:{}: empty line, expected a JSON object".format(path, number))
    return lines


def write_lines(path: str, lines: List[bytes]) -> None:
    """Writes a gzip file whose bytes depend on the lines only: no name, no time."""
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
        packed.write(b"".join(line + b"\n" for line in lines))


def halve(lines: List[bytes]) -> Dict[str, List[bytes]]:
    """Returns lines 1, 3, 5... as `valid` and lines 2, 4, 6... as `test`."""
    return {"valid": lines[0::2], "test": lines[1::2]}


def split(data: str, out: str) -> Dict[str, int]:
    """Writes the three files of `out`; all are made beside their place before the first is renamed.

    Args:
        data: folder with train.jsonl.gz and valid.jsonl.gz.
        out: folder to write, made where it is missing.

    Returns:
        Number of pairs of each split.

    Raises:
        DataError: a file that cannot be used, too few lines, or `out` is `data`.
    """
    if os.path.realpath(data) == os.path.realpath(out):
        raise DataError("{}: OUT is DATA, whose valid.jsonl.gz would be replaced by half of itself".format(out))
    parts = {"train": read_lines(os.path.join(data, "train.jsonl.gz"))}
    whole = os.path.join(data, "valid.jsonl.gz")
    parts.update(halve(read_lines(whole)))
    if not parts["test"]:
        raise DataError("{}: one pair cannot be halved".format(whole))
    made = {name: os.path.join(out, ".{}.{}.part".format(name, os.getpid())) for name in parts}
    try:
        os.makedirs(out, exist_ok=True)
        for name, lines in parts.items():
            write_lines(made[name], lines)
        for name in parts:
            os.replace(made[name], os.path.join(out, name + ".jsonl.gz"))
    except OSError as error:
        raise DataError("{}: cannot be written ({})".format(out, error.strerror)) from error
    finally:
        for path in made.values():
            if os.path.exists(path):
                os.remove(path)
    return {name: len(lines) for name, lines in parts.items()}


def main() -> None:
    """Parses the command line, splits, and reports bad input in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder of {train,valid}.jsonl.gz")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    arguments = parser.parse_args()
    try:
        counts = split(arguments.data, arguments.out)
    except DataError as error:
        sys.exit("split.py: error: {}".format(error))
    print(", ".join("{} {:,}".format(name, count) for name, count in counts.items()))


if __name__ == "__main__":
    main()
