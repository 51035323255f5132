"""The trace's file: appended batch by batch beside its place, renamed when the expected records are in."""

from __future__ import annotations

import logging
import os
from multiprocessing.util import Finalize
from typing import List, Optional, TextIO

from sd_fairseq.decision.trace import TraceRecord, to_json_line
from sd_fairseq.plugin.guards.errors import InputError

logger = logging.getLogger(__name__)


class TraceFile:
    """Opened at once, so that a place that cannot be written is noticed before any work.

    A run that is killed leaves what it has recorded in ``PATH.PID.part``. Records that come after the renaming (further
    buffers of fairseq-interactive) are appended to the file in its place.

    Args:
        path: links are followed; what is no regular file (a device, a pipe) is written straight into.

    Raises:
        InputError: it cannot be written.
    """

    def __init__(self, path: str):
        self.path = os.path.realpath(path)
        straight = os.path.exists(self.path) and not os.path.isfile(self.path)
        self.part: Optional[str] = None if straight else f"{self.path}.{os.getpid()}.part"
        try:
            self.stream: Optional[TextIO] = open(self.part or self.path, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise InputError(f"--sd-trace {path}: cannot be written ({error.strerror})") from error
        self.finalizer = Finalize(None, self.close, exitpriority=10)

    def append(self, records: List[TraceRecord], complete: bool) -> None:
        """Writes records; a file that can no longer be written (a full disk) ends the trace and not the generation.

        Args:
            records: of one batch.
            complete: all that are expected so far are in.
        """
        if self.stream is None:
            return
        try:
            self.stream.writelines(to_json_line(record) + "\n" for record in records)
            self.stream.flush()
            if complete and self.part is not None:
                os.replace(self.part, self.path)
                self.part = None
        except OSError as error:
            logger.error("--sd-trace %s: cannot be written any more (%s), the trace ends here", self.path, error)
            self.stream = None

    def close(self) -> None:
        """Closes the file; removes it if nothing was recorded."""
        if self.stream is not None:
            self.stream.close()
        if self.part is not None and os.path.exists(self.part) and os.path.getsize(self.part) == 0:
            os.remove(self.part)
