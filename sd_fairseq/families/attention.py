"""Multi-head attention whose heads need not add up to the embedding dimension, with a cache of plain tensors."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# "keys" and "values" [K, H, S, D] of the rows that keep the sub-layer, and of a source its "mask"; empty before the
# first step
Cache = Dict[str, Optional[Tensor]]


class Attention(nn.Module):
    """Attention without biases; A = heads * head_dim.

    Args:
        dim: C.
        heads: H.
        head_dim: D.
        scale: of the scores; T5's weights have it inside, so 1.
        dropout: of the attention weights.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, scale: float = 1.0, dropout: float = 0.0):
        super().__init__()
        self.heads, self.head_dim, self.scale, self.dropout = heads, head_dim, scale, dropout
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.out_proj = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(
        self, x: Tensor, source: Optional[Tensor], mask: Optional[Tensor], cache: Optional[Cache] = None
    ) -> Tuple[Tensor, Tensor]:
        """Attends.

        Args:
            x: [T, B, C], the queries' states.
            source: [S, B, C], what is attended to; None = ``cache`` has all of it.
            mask: added to the scores, to be broadcast to [B, H, T, S].
            cache: what was attended to before; ``source`` is appended to it.

        Returns:
            [T, B, C], and the weights [B, H, T, S].
        """
        keys, values = self._remember(source, cache)  # [B, H, S, D]
        scores = self._split(self.q_proj(x)) @ keys.transpose(2, 3)  # [B, H, T, S]
        scores = scores if self.scale == 1.0 else scores * self.scale
        scores = scores if mask is None else scores + mask
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(x.dtype)
        mixed = F.dropout(weights, self.dropout, self.training) @ values  # [B, H, T, D]
        joined = mixed.permute(2, 0, 1, 3).reshape(x.size(0), x.size(1), -1)  # [T, B, A]
        return self.out_proj(joined), weights

    def _remember(self, source: Optional[Tensor], cache: Optional[Cache]) -> Tuple[Tensor, Tensor]:
        """Returns all keys and values, those of ``source`` last."""
        known = {} if cache is None else cache
        if source is None:
            keys, values = known["keys"], known["values"]
            assert keys is not None and values is not None, "a cache that stands for the source is filled"
            return keys, values
        keys, values = self._split(self.k_proj(source)), self._split(self.v_proj(source))
        before = known.get("keys"), known.get("values")
        if before[0] is not None and before[1] is not None:
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        if cache is not None:
            cache["keys"], cache["values"] = keys, values
        return keys, values

    def _split(self, x: Tensor) -> Tensor:
        """[T, B, A] -> [B, H, T, D]."""
        return x.view(x.size(0), x.size(1), self.heads, self.head_dim).permute(1, 2, 0, 3)


def padding_scores(padding_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what hides padding, [B, 1, 1, S] of 0 and the lowest number (-inf would make NaN of an empty row).

    Args:
        padding_mask: BoolTensor [B, S], True = padding.
        dtype: of the scores.
    """
    hidden = torch.zeros(padding_mask.size(), dtype=dtype, device=padding_mask.device)
    return hidden.masked_fill(padding_mask, torch.finfo(dtype).min)[:, None, None, :]


def causal_scores(steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns what hides later tokens, [1, 1, T, T] of 0 and the lowest number."""
    lowest = torch.full((steps, steps), torch.finfo(dtype).min, dtype=dtype, device=device)
    return lowest.triu(diagonal=1)[None, None]


def reorder_cache(cache: Cache, order: Tensor) -> None:
    """Selects the rows ``order`` of a cache in place; nothing where it is empty."""
    for name, value in cache.items():
        cache[name] = None if value is None else value.index_select(0, order)
