"""What a decoder's layers ran for each sentence, where that differs from step to step, and what it costs.

A token here is one hypothesis's at one step, so a sentence of T steps and beam b has T * b of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Dict, Optional, Sequence

import torch
from torch import Tensor

from sd_fairseq.cost.sublayer_flops import (
    cross_attention_cache_flops,
    cross_attention_query_flops,
    ffn_flops,
    lm_head_flops,
)
from sd_fairseq.decision.rules import DecisionRule, NestedSchedule


@dataclass(frozen=True)
class LayerWork:
    """Counts of a batch, as far as its decisions keep a layer's sub-layers.

    Args:
        tokens: LongTensor [B, L], tokens that ran the layer.
        keys: LongTensor [B, L], keys that they attended to in self-attention, summed over them.
        filled: LongTensor [B, L], tokens of which the layer made keys and values only.
        sources: BoolTensor [B, L], True = the layer made the source's keys and values.
        heads: LongTensor [B], tokens that the LM head was run for, once each time.
        given: LongTensor [B], all tokens.
    """

    tokens: Tensor
    keys: Tensor
    filled: Tensor
    sources: Tensor
    heads: Tensor
    given: Tensor

    @classmethod
    def join(cls, pieces: "Sequence[LayerWork]") -> "LayerWork":
        """Puts the work of several batches one after the other."""
        return cls(*(torch.cat([getattr(one, item.name) for one in pieces]) for item in fields(cls)))

    def to(self, device: torch.device) -> "LayerWork":
        """Returns the same counts on ``device``."""
        return LayerWork(*(getattr(self, item.name).to(device) for item in fields(self)))

    def index_select(self, order: Tensor) -> "LayerWork":
        """Returns the work of the sentences ``order`` (LongTensor [B'])."""
        return LayerWork(*(getattr(self, item.name).index_select(0, order) for item in fields(self)))

    @property
    def share(self) -> Tensor:
        """float64 [B, L], share of the tokens that ran each layer."""
        return self.tokens.double() / self.given.double().unsqueeze(1)


@dataclass(frozen=True)
class WorkCosts:
    """FLOPs of the work, by site and layer, 1 multiply-accumulate = 2.

    Args:
        work: counts.
        dim, attention_dim, ffn_dim, products: C, A, F and the matrices of a feed-forward sub-layer.
    """

    work: LayerWork
    dim: int
    attention_dim: int
    ffn_dim: int
    products: int

    def sites(self, source: Tensor, source_dim: int) -> Dict[str, Tensor]:
        """Costs of every layer's sub-layers.

        Self-attention: 4CA MACs a token and 2A a key that it reads; 2CA a token that is only filled in.

        Args:
            source: [B], S' of the kept source tokens.
            source_dim: C of the encoder.

        Returns:
            site -> float64 [B, L].
        """
        work, dim, inner = self.work, self.dim, self.attention_dim
        tokens, kept = work.tokens.double(), source.double().unsqueeze(1)
        projected = 4 * tokens + 2 * work.filled.double()
        return {
            "decoder_attention": 2 * (dim * inner * projected + 2 * inner * work.keys.double()),
            "decoder_cross_attention": cross_attention_query_flops(tokens, kept, dim, inner)
            + work.sources.double() * cross_attention_cache_flops(kept, inner, source_dim),
            "decoder_ffn": ffn_flops(tokens, dim, self.ffn_dim, self.products),
        }

    def more_heads(self, vocabulary: int) -> Tensor:
        """FLOPs of the LM head beyond once a token, float64 [B]."""
        return lm_head_flops(self.work.heads.double() - self.work.given.double(), self.dim, vocabulary)


def scheduled_work(rule: DecisionRule, steps: Tensor, beam: int) -> Optional[LayerWork]:
    """Returns the work of a rule by position, known before it is done; None where every layer runs at every step.

    Args:
        rule: any rule.
        steps: LongTensor [B], decoder steps of every sentence.
        beam: hypotheses decoded side by side.
    """
    if not isinstance(rule, NestedSchedule):
        return None
    run = rule.steps_run(steps)  # [B, L]
    given = beam * steps
    return LayerWork(beam * run, beam * run * (run + 1) // 2, torch.zeros_like(run), run > 0, given, given)
