"""Bad input ends a fairseq command with one clear line instead of a traceback."""

import os
import sys
from typing import Optional

from sd_fairseq.errors import TRACEBACK_VARIABLE, InputError, drop_standard_output, end_quietly, find_message

__all__ = ["InputError", "fairseq_command", "find_message", "install_one_line_errors"]


def fairseq_command(program: str) -> Optional[str]:
    """Name the fairseq command line that is running.

    Args:
        program: `sys.argv[0]`.

    Returns:
        The command without prefix and ending, such as "train" or "generate"; None for any other program.
    """
    folder, name = os.path.split(program)
    for ending in (".exe", "-script.py", ".py"):
        if name.endswith(ending):
            name = name[: -len(ending)]
            break
    if name.startswith("fairseq-"):
        return name[len("fairseq-") :]
    if os.path.basename(folder) == "fairseq_cli":
        return name
    return None


def install_one_line_errors() -> None:
    """Let an uncaught InputError print one line, if this process is a fairseq command line.

    The exit code stays 1. With SD_FAIRSEQ_TRACEBACK=1 in the environment the traceback is printed too. Where the reader
    of standard output has gone (``| head``), the command ends in silence. Every other exception goes to the hook that
    was set before. Calling it again changes nothing.
    """
    previous = sys.excepthook
    if fairseq_command(sys.argv[0] if sys.argv else "") is None or hasattr(previous, "prints_input_errors"):
        return

    def print_one_line(kind, error, traceback):
        message = find_message(error)
        if message is None and isinstance(error, BrokenPipeError):
            drop_standard_output()
            return
        if message is None or os.environ.get(TRACEBACK_VARIABLE) == "1":
            previous(kind, error, traceback)
        if message is not None:
            print("sd_fairseq: error: " + message, file=sys.stderr)

    print_one_line.prints_input_errors = True
    sys.excepthook = print_one_line
    end_quietly()
