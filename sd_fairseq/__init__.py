"""Switchable Decision for fairseq: BART that decides per input which sub-layers and source tokens to skip.

Reading order, as in the paper's abstract: :mod:`~sd_fairseq.decision` (what may be skipped, who decides) ->
:mod:`~sd_fairseq.execution` (how it is carried out) -> :mod:`~sd_fairseq.cost` (what it costs) ->
:mod:`~sd_fairseq.learning` (how the policy learns) -> :mod:`~sd_fairseq.plugin` (fairseq) ->
:mod:`~sd_fairseq.evaluation` (did it work).

Only the plugin needs fairseq; it is registered here when fairseq is installed, which is what ``--user-dir sd_fairseq``
relies on.
"""

from importlib.util import find_spec

from sd_fairseq.version import __version__

__all__ = ["__version__"]

if find_spec("fairseq") is not None:
    import sd_fairseq.plugin  # noqa: F401
