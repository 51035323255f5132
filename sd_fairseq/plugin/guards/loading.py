"""A checkpoint that is whole and still cannot be loaded is one line of a command, too."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from sd_fairseq.plugin.guards.errors import InputError, find_message


@contextmanager
def loading(path: str, option: str) -> Iterator[None]:
    """Lets what fairseq and torch raise over a checkpoint name it.

    Args:
        path: of the checkpoint.
        option: what named it.

    Raises:
        InputError: for any error of the block; OSError, which names its file, stays.
    """
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:  # damaged content raises nearly anything
        reason = find_message(error) or f"cannot be loaded ({type(error).__name__}: {error})"
        raise InputError(f"{option} {path}: {reason}") from error
