"""How long sources and targets may be in a generation: what the checkpoint takes, unless the command line says less."""

from __future__ import annotations

import sys
from typing import Any, Sequence

from sd_fairseq.plugin.guards.errors import InputError

SIDES = ("source", "target")


def take_positions(cfg: Any, model: Any, arguments: Sequence[str] = ()) -> None:
    """Gives a task the limits of a model that it generates with; of several models the smallest limits hold.

    Args:
        cfg: the task's options, changed in place.
        model: whose ``max_positions`` are (source, target).
        arguments: of the command line; () = this process's.

    Raises:
        InputError: an option of the command line allows more than the model takes.
    """
    limits = model.max_positions()
    if not isinstance(limits, (tuple, list)) or len(limits) != len(SIDES):
        return
    for side, limit in zip(SIDES, limits):
        name, option = f"max_{side}_positions", f"--max-{side}-positions"
        found = getattr(cfg, name, None)
        if found is None or found <= limit:
            continue
        if is_given(option, arguments or sys.argv[1:]):
            raise InputError(f"{option} {found}: expected at most {int(limit)}, which is what the checkpoint takes")
        setattr(cfg, name, int(limit))


def is_given(option: str, arguments: Sequence[str]) -> bool:
    """Tells whether a command line has an option, as ``--option value`` or ``--option=value``."""
    return any(one == option or one.startswith(option + "=") for one in arguments)
