"""Files that are whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import Any, Iterator


@contextmanager
def whole(path: str) -> Iterator[str]:
    """Gives a path to write to; when the block ends it becomes ``path``, when it raises it is removed.

    Args:
        path: the file's place; what stood there stays until the end.

    Raises:
        OSError: it cannot be renamed.
    """
    part = f"{path}.{os.getpid()}.part"
    try:
        yield part
        os.replace(part, path)
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
