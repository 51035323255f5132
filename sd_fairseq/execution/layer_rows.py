"""Which rows of a layer run its sub-layers, whatever the model's family."""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Optional, Tuple

from torch import Tensor

from sd_fairseq.decision.decider import Decider
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.execution.sublayers import KeptRows, expand_rows, find_kept_rows, run_gated, run_kept_rows


class LayerRows(NamedTuple):
    """The rows of one layer that keep each sub-layer (see :data:`~sd_fairseq.execution.sublayers.KeptRows`).

    Args:
        attention: rows of self-attention (beam rows in the decoder).
        ffn: rows of the feed-forward sub-layer.
        cross: sentences of cross-attention; decoder only.
        beam: beam rows a sentence; decoder only.
        gates: site -> [B, L] and the layer (from 0), where every row runs and is gated; see
            :func:`~sd_fairseq.execution.sublayers.run_gated`. None = the rows above run, ungated.
    """

    attention: KeptRows = None
    ffn: KeptRows = None
    cross: KeptRows = None
    beam: int = 1
    gates: Optional[Tuple[Dict[str, Tensor], int]] = None

    def run(
        self,
        site: str,
        sublayer: Callable[[Tensor, KeptRows], Tensor],
        x: Tensor,
        kept: KeptRows,
        skipped: Optional[Callable[[Tensor], Tensor]],
    ) -> Tensor:
        """Runs the sub-layer ``site`` for the rows ``kept``, or gated for all: [T, B, C] -> [T, B, C]."""
        if self.gates is None:
            return run_kept_rows(sublayer, x, kept, skipped)
        values, layer = self.gates
        return run_gated(sublayer, x, values[site][:, layer], skipped)

    @property
    def cross_rows(self) -> KeptRows:
        """The beam rows of the sentences that keep cross-attention."""
        return expand_rows(self.cross, self.beam)


class EncoderRows:
    """The kept rows of the encoder's layers, found once for every set of decisions.

    Args:
        decider: of the forward pass.
    """

    def __init__(self, decider: Decider):
        self.decider = decider
        self._decisions: Optional[Decisions] = None

    def of_layer(self, layer: int) -> LayerRows:
        """Returns the kept rows of encoder layer ``layer`` (from 0), or its gates."""
        if self.decider.gates is not None:
            return LayerRows(gates=(self.decider.gates, layer))
        decisions = self.decider.decisions()
        if decisions is not self._decisions:  # a policy that decides layer by layer makes new ones
            self._decisions = decisions
            self._attention, self._ffn = map(find_kept_rows, (decisions.encoder_attention, decisions.encoder_ffn))
        return LayerRows(attention=self._attention[layer], ffn=self._ffn[layer])
