"""One decoder layer of a search whose tokens leave early: fairseq's BART layer, run for a list of tokens.

Tokens stand in a list, each with its row of the search and its position. A row's keys and values are written where the
token stands, whether it ran the layer, was only filled in (CALM), or comes later with others (FREE).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from sd_fairseq.execution.beam_cache import FIRST_STEPS


class Tokens(NamedTuple):
    """Tokens that run a layer together; padded, each row has ``width`` of them.

    Args:
        rows: LongTensor [K], rows of the search that they belong to, or None = all, one token each.
        row_of, positions: LongTensor [N], row and position of every token.
        places: LongTensor [N], where each stands among the K * width padded ones.
        width: M, tokens of the row that has most.
    """

    rows: Optional[Tensor]
    row_of: Tensor
    positions: Tensor
    places: Tensor
    width: int = 1


def one_each(rows: Tensor, step: int, count: int) -> Tokens:
    """Returns the newest token of each of ``rows`` (LongTensor [K], of ``count`` rows in all)."""
    places = torch.arange(rows.numel(), device=rows.device)
    return Tokens(None if rows.numel() == count else rows, rows, torch.full_like(rows, step), places)


def waiting(rows: Tensor, done: Tensor, step: int) -> Tokens:
    """Returns all tokens of ``rows`` (LongTensor [K]) from position ``done`` (LongTensor [K]) to ``step``."""
    width = step + 1 - int(done.min())
    positions = torch.arange(step + 1 - width, step + 1, device=rows.device).expand(rows.numel(), -1)  # [K, M]
    real = positions >= done.unsqueeze(1)
    row_of = rows.unsqueeze(1).expand_as(positions)
    return Tokens(rows, row_of[real], positions[real], real.flatten().nonzero().flatten(), width)


class ExitLayer:
    """One decoder layer during a search: fairseq's layer, the keys and values of its rows and of the source.

    Args:
        layer: a switchable decoder layer.
        source: [S', B, C].
        padding: BoolTensor [B, S'], True = padding.
        rows: R.
    """

    def __init__(self, layer: Any, source: Tensor, padding: Tensor, rows: int):
        self.layer, self.beam, self.before = layer, rows // source.size(1), layer.normalize_before
        own, cross = layer.self_attn, layer.encoder_attn
        self.keys = source.new_zeros(rows, own.num_heads, FIRST_STEPS, own.head_dim)
        self.values = torch.zeros_like(self.keys)
        flat = source.transpose(0, 1)  # [B, S', C]
        self.source_keys, self.source_values = (
            split_heads(one(flat), cross.num_heads).transpose(1, 2) for one in (cross.k_proj, cross.v_proj)
        )  # [B, H, S', D]
        self.hidden = padding.view(padding.size(0), 1, 1, -1) if bool(padding.any()) else None

    def select(self, rows: Tensor, sentences: Tensor) -> None:
        """Keeps the rows and sentences of these orders."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        self.source_keys = self.source_keys.index_select(0, sentences)
        self.source_values = self.source_values.index_select(0, sentences)
        self.hidden = None if self.hidden is None else self.hidden.index_select(0, sentences)

    def fill(self, x: Tensor, row_of: Tensor, positions: Tensor) -> None:
        """Makes the keys and values of tokens [N, C] that do not run the layer."""
        self._write(self.layer.self_attn_layer_norm(x) if self.before else x, row_of, positions)

    def _write(self, x: Tensor, row_of: Tensor, positions: Tensor) -> None:
        attention = self.layer.self_attn
        while int(positions.max()) >= self.keys.size(2):
            self.keys, self.values = (
                torch.cat([one, torch.zeros_like(one)], dim=2) for one in (self.keys, self.values)
            )
        self.keys[row_of, :, positions] = split_heads(attention.k_proj(x), attention.num_heads)
        self.values[row_of, :, positions] = split_heads(attention.v_proj(x), attention.num_heads)

    def run(self, x: Tensor, tokens: Tokens, steps: int) -> Tensor:
        """Runs the layer: [N, C] -> [N, C].

        Args:
            x: states of ``tokens``.
            tokens: who runs.
            steps: positions that are written, those of ``tokens`` included.
        """
        layer = self.layer
        x = self._residual(x, layer.self_attn_layer_norm, lambda y: self._attend_before(y, tokens, steps))
        x = self._residual(x, layer.encoder_attn_layer_norm, lambda y: self._attend_source(y, tokens))
        return layer.run_ffn(x.unsqueeze(0)).squeeze(0)

    def _residual(self, x: Tensor, norm: Any, function: Any) -> Tensor:
        if self.before:
            return self.layer.residual_connection(self.layer.dropout_module(function(norm(x))), x)
        return norm(self.layer.residual_connection(self.layer.dropout_module(function(x)), x))

    def _attend_before(self, x: Tensor, tokens: Tokens, steps: int) -> Tensor:
        attention = self.layer.self_attn
        self._write(x, tokens.row_of, tokens.positions)
        keys, values = self.keys[:, :, :steps], self.values[:, :, :steps]
        if tokens.rows is not None:
            keys, values = keys.index_select(0, tokens.rows), values.index_select(0, tokens.rows)
        hidden = None
        if tokens.width > 1:  # what comes later than a token; padding sees the first one
            padded = torch.zeros(keys.size(0) * tokens.width, dtype=torch.long, device=x.device)
            padded = padded.index_copy(0, tokens.places, tokens.positions).view(keys.size(0), 1, tokens.width, 1)
            hidden = torch.arange(steps, device=x.device) > padded  # [K, 1, M, steps]
        return attend(attention, x, tokens.places, tokens.width, keys, values, hidden)

    def _attend_source(self, x: Tensor, tokens: Tokens) -> Tensor:
        attention, places, width = self.layer.encoder_attn, tokens.places, tokens.width
        keys, values, hidden = self.source_keys, self.source_values, self.hidden
        if tokens.rows is None:
            width = self.beam  # the hypotheses of a sentence stand side by side
        else:
            sentences = torch.div(tokens.rows, self.beam, rounding_mode="floor")
            keys, values = keys.index_select(0, sentences), values.index_select(0, sentences)
            hidden = None if hidden is None else hidden.index_select(0, sentences)
        return attend(attention, x, places, width, keys, values, hidden)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., H * D] -> [..., H, D]."""
    return x.unflatten(-1, (heads, -1))


def attend(
    attention: Any, x: Tensor, places: Tensor, width: int, keys: Tensor, values: Tensor, hidden: Optional[Tensor]
) -> Tensor:
    """Attention of tokens in a list over the keys of their rows, with its projections: [N, C] -> [N, C].

    Args:
        attention: fairseq's.
        x: [N, C].
        places, width: see :class:`Tokens`.
        keys, values: [K, H, n, D].
        hidden: BoolTensor that fits [K, H, M, n], True = not to be seen; None = all is seen.
    """
    queries = split_heads(attention.q_proj(x) * attention.scaling, attention.num_heads)  # [N, H, D]
    count, heads, dim = queries.size()
    padded = keys.size(0) * width
    if padded != count:
        queries = queries.new_zeros(padded, heads, dim).index_copy(0, places, queries)
    queries = queries.view(-1, width, heads, dim).transpose(1, 2)  # [K, H, M, D]
    scores = (queries @ keys.transpose(2, 3)).float()
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = attention.dropout_module(torch.softmax(scores, dim=-1).to(values))
    output = (weights @ values).transpose(1, 2).reshape(padded, heads * dim)
    return attention.out_proj(output if padded == count else output.index_select(0, places))
