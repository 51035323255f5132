"""The trace's file: appended batch by batch beside its place, renamed when the expected records are in."""

from __future__ import annotations

import logging
from multiprocessing.util import Finalize
from typing import List, Optional

from sd_fairseq.decision.trace import TraceRecord, to_json_line
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.whole_files import GrowingFile

logger = logging.getLogger(__name__)


class TraceFile:
    """Opened at once, so that a place that cannot be written is noticed before any work.

    Args:
        path: see :class:`~sd_fairseq.whole_files.GrowingFile`.

    Raises:
        InputError: it cannot be written.
    """

    def __init__(self, path: str):
        try:
            self.file: Optional[GrowingFile] = GrowingFile(path)
        except InputError as error:
            raise InputError(f"--sd-trace {error}") from error
        self.path = path
        self.finalizer = Finalize(None, self.file.close, exitpriority=10)

    def append(self, records: List[TraceRecord], complete: bool) -> None:
        """Writes records; a file that can no longer be written (a full disk) ends the trace and not the generation.

        Args:
            records: of one batch.
            complete: all that are expected so far are in.
        """
        if self.file is None:
            return
        try:
            self.file.append("".join(to_json_line(record) + "\n" for record in records), complete)
        except OSError as error:
            logger.error("--sd-trace %s: cannot be written any more (%s), the trace ends here", self.path, error)
            self.file = None
