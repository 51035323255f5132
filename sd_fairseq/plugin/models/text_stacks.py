"""What the stacks of these models share behind fairseq's interfaces (:mod:`.t5_stacks`, :mod:`.prompt_stacks`)."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

from fairseq.models import FairseqEncoder, FairseqIncrementalDecoder
from torch import Tensor

from sd_fairseq.execution.encoder_flow import EncoderFlow
from sd_fairseq.families.attention import reorder_cache
from sd_fairseq.families.norms import divide_by_rms
from sd_fairseq.plugin.models.decoder_flow import DecoderFlow, IncrementalState


class TextEncoder(EncoderFlow, FairseqEncoder):
    """An encoder whose sub-layers begin with their norm.

    Choice: the policy reads the mean of states that are divided by their own root mean square. A pre-norm model adds up
    its sub-layers' outputs without ever normalising the sum: of a trained T5 some dimensions reach thousands, and would
    be all that a policy sees.

    Attributes:
        longest: source, in tokens.
        eps: of the norms.
    """

    longest: int
    eps: float

    def max_positions(self) -> int:
        """Longest source, in tokens."""
        return self.longest

    def view_for_policy(self, x: Tensor) -> Tensor:
        """Each token's state divided by its root mean square."""
        return divide_by_rms(x, self.eps)


class TextDecoder(DecoderFlow, FairseqIncrementalDecoder):
    """A decoder of layers that name their own caches (``cache_of``).

    Attributes:
        longest: target, in tokens.
    """

    longest: int

    def max_positions(self) -> int:
        """Longest target, in tokens."""
        return self.longest

    def reorder_cache(self, layer: int, site: str, incremental_state: IncrementalState, order: Tensor) -> None:
        """Selects the rows ``order`` of one attention's cache (none where no row ever ran it)."""
        cache = self.layers[layer].cache_of(site, incremental_state)
        if cache:
            reorder_cache(cache, order)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict[str, list]] = None,
        incremental_state: Optional[IncrementalState] = None,
        features_only: bool = False,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
        **unused: Any,
    ) -> Tuple[Tensor, Dict[str, list]]:
        """Features of :meth:`extract_features` [R, T, C], or logits [R, T, V], and what goes with them."""
        x, extra = self.extract_features(
            prev_output_tokens,
            encoder_out,
            incremental_state,
            full_context_alignment,
            alignment_layer,
            alignment_heads,
        )
        return (x if features_only else self.output_layer(x)), extra
