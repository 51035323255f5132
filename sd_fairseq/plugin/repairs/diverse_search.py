"""Diverse beam search (``--diverse-beam-groups``) whose penalty belongs to the right sentence in any batch."""

from typing import Any, Optional

from fairseq.search import DiverseBeamSearch
from torch import Tensor


class SentenceDiverseBeamSearch(DiverseBeamSearch):
    """fairseq's, which keeps the words that groups share in a row per sentence but finds it by the data set's number.

    In every batch but the first that crashes (``IndexError``), and in the first it takes another sentence's row
    wherever batches are sorted by length. Arguments as fairseq's.
    """

    numbers: Tensor

    def step(
        self,
        step: int,
        lprobs: Tensor,
        scores: Optional[Tensor],
        prev_output_tokens: Optional[Tensor] = None,
        original_batch_idxs: Optional[Tensor] = None,
    ) -> Any:
        """As fairseq's.

        Args:
            step: from 0.
            lprobs: [B, beam, V] of the sentences still searched.
            scores: [B, beam, step], or None.
            prev_output_tokens: unused.
            original_batch_idxs: LongTensor [B], the sentences' numbers in the data set.
        """
        if original_batch_idxs is None:
            raise ValueError("diverse beam search needs the sentences' numbers, found None")
        if step == 0:
            self.numbers = original_batch_idxs
        rows = original_batch_idxs.unsqueeze(1).eq(self.numbers).long().argmax(dim=1)  # [B]
        return super().step(step, lprobs, scores, prev_output_tokens, rows)


def repair_search(search: Any, dictionary: Any) -> Any:
    """Returns the search to use in place of one that fairseq built: itself, unless it is the diverse one.

    Args:
        search: of a generator.
        dictionary: the target's.
    """
    if type(search) is not DiverseBeamSearch:
        return search
    groups, strength = search.num_groups, -search.diversity_strength
    repaired = SentenceDiverseBeamSearch(dictionary, groups, strength)
    for name in ("diversity_discount", "candidate_multiple"):  # fairseq 0.12.2 has neither
        if hasattr(search, name):
            setattr(repaired, name, getattr(search, name))
    return repaired
