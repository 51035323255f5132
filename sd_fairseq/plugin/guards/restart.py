"""Lets a killed training go on by the same command when the kill has cut ``checkpoint_last.pt`` short.

fairseq writes a checkpoint beside its place and renames it, but then makes ``checkpoint_last.pt`` by a plain copy of
it: a kill in that moment leaves a whole ``checkpoint_1_500.pt`` and half a ``checkpoint_last.pt``.
"""

import glob
import logging
import os
from typing import Callable, List, Optional

from sd_fairseq.whole_files import copy_whole

logger = logging.getLogger(__name__)


def mend_last_checkpoint(last: str, is_whole: Callable[[str], bool], suffix: str = "") -> Optional[str]:
    """Replaces a damaged ``checkpoint_last.pt`` by the newest whole checkpoint beside it, as the copy would have.

    Args:
        last: where fairseq looks for the checkpoint to go on from.
        is_whole: tells whether a file is a checkpoint with all its tensors.
        suffix: ``--checkpoint-suffix``; only files with the same one are of the same model part.

    Returns:
        The file that stands in its place now, or None if nothing was wrong or nothing whole is there.

    Raises:
        InputError: the copy could not be written; the damaged file stays.
    """
    if not os.path.isfile(last) or is_whole(last):
        return None
    for candidate in newest_first(os.path.dirname(last), suffix):
        if not os.path.samefile(candidate, last) and is_whole(candidate):
            copy_whole(candidate, last)
            logger.warning("%s was cut short while it was written; going on from %s", last, candidate)
            return candidate
    return None


def newest_first(folder: str, suffix: str) -> List[str]:
    """Lists the checkpoints of a folder that fairseq may have copied from, the last written first."""
    names = glob.glob(os.path.join(glob.escape(folder), "checkpoint*" + glob.escape(suffix) + ".pt"))
    return sorted((name for name in names if os.path.isfile(name)), key=os.path.getmtime, reverse=True)
