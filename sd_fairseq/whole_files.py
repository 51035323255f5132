"""Files that are whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple, Union


class PlaceError(ValueError):
    """An output that would destroy an input or another output; the message is one line."""


def check_places(outputs: Sequence[Optional[str]], inputs: Sequence[Optional[str]]) -> None:
    """Refuses, before any work, an output over an input and two outputs in one file.

    Files are the same by device and inode, or by their path where none is there yet. Devices and pipes are no files.

    Args:
        outputs, inputs: paths; None where an option is not given.

    Raises:
        PlaceError: naming both paths.
    """
    taken: Dict[Tuple[Union[int, str], ...], Tuple[str, str]] = {}
    given = [("the input", path) for path in inputs if path] + [("the output", path) for path in outputs if path]
    for kind, path in given:
        place = os.path.realpath(path)
        if os.path.exists(place) and not os.path.isfile(place):
            continue
        key: Tuple[Union[int, str], ...] = (place,)
        if os.path.exists(place):
            status = os.stat(place)
            key = (status.st_dev, status.st_ino)
        if kind == "the output" and key in taken:
            raise PlaceError(f"{path}: the same file as {taken[key][0]} {taken[key][1]}, expected another output")
        taken.setdefault(key, (kind, path))


@contextmanager
def whole(path: str) -> Iterator[str]:
    """Gives a path to write to; when the block ends it becomes ``path``, when it raises it is removed.

    Args:
        path: the file's place; what stood there stays until the end.

    Raises:
        OSError: it cannot be renamed.
    """
    place = os.path.realpath(path)
    if os.path.exists(place) and not os.path.isfile(place):
        yield place
        return
    part = f"{place}.{os.getpid()}.part"
    try:
        yield part
        if os.path.exists(place):
            shutil.copymode(place, part)
        os.replace(part, place)
    finally:
        if os.path.exists(part):
            os.remove(part)


def write_text(path: str, text: str) -> None:
    """Writes UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    with whole(path) as part:
        with open(part, "w", encoding="utf-8") as stream:
            stream.write(text)


def write_json(path: str, content: Any) -> None:
    """Writes JSON, one space of indentation a level.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")
