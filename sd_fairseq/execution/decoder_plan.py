"""Which decoder rows run which sub-layer while a beam search reorders and removes sentences.

A plan is a value: the search's incremental state holds it, every reordering makes a new one. Rows are beam rows,
sentence-major (row = sentence * beam + hypothesis), as fairseq's generator lays them out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional

import torch
from torch import Tensor

from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.execution.sublayers import KeptRows, expand_rows, find_kept_rows


@dataclass(frozen=True)
class DecoderPlan:
    """The kept rows of every decoder layer.

    Args:
        decisions: one path a sentence.
        beam: rows a sentence (1 in teacher forcing).
        positions: LongTensor [sentences, S'] or None, see :func:`~sd_fairseq.execution.tokens.restore_positions`.
        source_length: S of the batch before token skipping, 0 when nothing was dropped.
        attention_rows, ffn_rows: one :data:`KeptRows` of beam rows a layer.
        cross_sentences: one :data:`KeptRows` of sentences a layer, for cross-attention.
    """

    decisions: Decisions
    beam: int
    positions: Optional[Tensor] = None
    source_length: int = 0
    attention_rows: List[KeptRows] = field(default_factory=list)
    cross_sentences: List[KeptRows] = field(default_factory=list)
    ffn_rows: List[KeptRows] = field(default_factory=list)

    @classmethod
    def build(
        cls, decisions: Decisions, num_rows: int, positions: Optional[Tensor] = None, source_length: int = 0
    ) -> "DecoderPlan":
        """Builds the plan of ``num_rows`` decoder rows over ``len(decisions)`` sentences.

        Raises:
            ValueError: rows that do not divide evenly among the sentences.
        """
        sentences = len(decisions)
        if num_rows % sentences:
            raise ValueError(f"{num_rows} decoder rows do not divide among the decisions of {sentences} sentences")
        beam = num_rows // sentences
        return cls(
            decisions,
            beam,
            positions,
            source_length,
            [expand_rows(rows, beam) for rows in find_kept_rows(decisions.decoder_attention)],
            find_kept_rows(decisions.decoder_cross_attention),
            [expand_rows(rows, beam) for rows in find_kept_rows(decisions.decoder_ffn)],
        )

    @property
    def num_rows(self) -> int:
        return len(self.decisions) * self.beam

    def sentence_order(self, new_order: Tensor) -> Tensor:
        """Reduces an order of beam rows [B' * beam] to one of sentences [B']."""
        return torch.div(new_order.view(-1, self.beam)[:, 0], self.beam, rounding_mode="floor")

    def keeps_sentences(self, sentence_order: Tensor) -> bool:
        """Tells whether an order only shuffles hypotheses inside their sentences."""
        same_count = sentence_order.size(0) == len(self.decisions)
        return same_count and bool((sentence_order == torch.arange(len(self.decisions)).to(sentence_order)).all())

    def reorder(self, sentence_order: Tensor) -> "DecoderPlan":
        """Returns the plan of the sentences ``sentence_order``."""
        positions = None if self.positions is None else self.positions.index_select(0, sentence_order)
        decisions = self.decisions.index_select(sentence_order)
        return DecoderPlan.build(decisions, sentence_order.size(0) * self.beam, positions, self.source_length)


def compact_order(old_rows: KeptRows, new_rows: KeptRows, new_order: Tensor, num_old: int) -> Tensor:
    """Translates an order of all rows into one of a cache that holds kept rows only.

    Args:
        old_rows, new_rows: kept rows before and after the reordering.
        new_order: LongTensor [rows after], the row before of every row after.
        num_old: number of rows before.

    Returns:
        LongTensor [kept rows after], positions in the old cache.
    """
    wanted = new_order if new_rows is None else new_order.index_select(0, new_rows)
    if old_rows is None:
        return wanted
    rank = torch.full((num_old,), -1, dtype=torch.long, device=new_order.device)
    rank[old_rows] = torch.arange(old_rows.numel(), device=new_order.device)
    return rank.index_select(0, wanted)
