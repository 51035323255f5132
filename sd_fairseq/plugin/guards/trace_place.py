"""Where a trace may be written: not over what the generation reads."""

from __future__ import annotations

from typing import Optional, Sequence

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.whole_files import check_places


def check_trace(path: str, inputs: Sequence[Optional[str]]) -> None:
    """Refuses a ``--sd-trace`` that is an input, or cannot be written.

    Raises:
        InputError: naming both.
    """
    try:
        check_places([path], inputs)
    except InputError as error:
        raise InputError(f"--sd-trace {error}") from error
