"""Switchable Decision for fairseq: BART that decides per input which sub-layers and source tokens to skip.

Reading order, as in the paper's abstract: :mod:`~sd_fairseq.decision` (what may be skipped, who decides) ->
:mod:`~sd_fairseq.execution` (how it is carried out) -> :mod:`~sd_fairseq.families` (sub-layers that fairseq lacks) ->
:mod:`~sd_fairseq.cost` (what it costs) -> :mod:`~sd_fairseq.learning` (how the policy learns) ->
:mod:`~sd_fairseq.evaluation` (did it work) -> :mod:`~sd_fairseq.plugin` (fairseq) -> :mod:`~sd_fairseq.study` (research
tools) -> :mod:`~sd_fairseq.commands`.

Models, tasks and criterion are registered here when fairseq has been imported, as it has when it loads
``--user-dir sd_fairseq``; anything of :mod:`sd_fairseq.plugin` registers them, too. Nothing here imports fairseq first.
"""

import sys

from sd_fairseq.moved import install as _install_signposts
from sd_fairseq.version import __version__

__all__ = ["__version__"]

_install_signposts()
if sys.modules.get("fairseq") is not None:
    import sd_fairseq.plugin  # noqa: F401
