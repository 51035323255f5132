"""Which source word every generated word attends to, for ``--replace-unk``."""

from typing import Any, Dict, List

from torch import Tensor


def align_hypotheses(src_tokens: Tensor, hypotheses: List[List[Dict[str, Any]]], padding: int) -> None:
    """Writes the most attended source position of every generated word where fairseq looks for it.

    fairseq's command indexes ``alignment`` by target word to replace unknown ones, but its generator leaves it empty
    (``IndexError``) or, with ``--print-alignment``, fills it with pairs (``TypeError``). Positions count in the
    original source: attention over a shortened source has been spread back before.

    Args:
        src_tokens: LongTensor [B, S].
        hypotheses: of every sentence, best first; ``alignment`` is set to a list of T positions without padding.
        padding: symbol.
    """
    for tokens, group in zip(src_tokens, hypotheses):
        real = tokens.ne(padding).nonzero().squeeze(1)
        for hypothesis in group:
            attention = hypothesis["attention"]  # [S, T]
            if attention is not None and attention.numel():
                hypothesis["alignment"] = attention.index_select(0, real).argmax(dim=0).tolist()
