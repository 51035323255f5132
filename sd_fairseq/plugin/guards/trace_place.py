"""Where a trace may be written: not over what the generation reads."""

from __future__ import annotations

import os
import re
from typing import List, Optional, Sequence

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.whole_files import check_places

# dictionaries, binarised splits, raw ones such as test.source-target.source
DATA_FILE = re.compile(r"dict\..*|.*\.(bin|idx)|[^.]+\.[^.]+-[^.]+\.[^.]+")


def data_files(data: str) -> List[str]:
    """Lists the files that fairseq may read; a trace of before may stand beside them.

    Args:
        data: the folders, as fairseq has them: with colons between.
    """
    folders = [folder for folder in data.split(":") if os.path.isdir(folder)]
    found = [os.path.join(folder, name) for folder in folders for name in os.listdir(folder)]
    return [path for path in found if DATA_FILE.fullmatch(os.path.basename(path)) and os.path.isfile(path)]


def check_trace(path: str, inputs: Sequence[Optional[str]]) -> None:
    """Refuses a ``--sd-trace`` that is an input, or cannot be written.

    Raises:
        InputError: naming both.
    """
    try:
        check_places([path], inputs)
    except InputError as error:
        raise InputError(f"--sd-trace {error}") from error
