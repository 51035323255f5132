"""One decoder layer of a search whose tokens leave early, run for a list of tokens.

Tokens stand in a list, each with its row of the search and its position. A row's keys and values are written where the
token stands, whether it ran the layer, was only filled in (CALM), or comes later with others (FREE).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

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


class ModuleParts:
    """What a layer computes, of fairseq's modules; the fast generator has packed products behind the same calls.

    Args:
        layer: a switchable decoder layer.
    """

    def __init__(self, layer: Any):
        self.layer, self.heads = layer, layer.self_attn.num_heads

    def _residual(self, x: Tensor, norm: Any, function: Any) -> Tensor:
        before = self.layer.normalize_before
        x = self.layer.residual_connection(self.layer.dropout_module(function(norm(x) if before else x)), x)
        return x if before else norm(x)

    def attention(self, x: Tensor, function: Any) -> Tensor:
        """Runs ``function`` as the residual self-attention: [N, C] -> [N, C]."""
        return self._residual(x, self.layer.self_attn_layer_norm, function)

    def cross(self, x: Tensor, function: Any) -> Tensor:
        """Runs ``function`` as the residual cross-attention: [N, C] -> [N, C]."""
        return self._residual(x, self.layer.encoder_attn_layer_norm, function)

    def ffn(self, x: Tensor) -> Tensor:
        """The whole feed-forward sub-layer: [N, C] -> [N, C]."""
        return self.layer.run_ffn(x.unsqueeze(0)).squeeze(0)

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Makes queries, scaled, keys and values of self-attention's input: [N, C] -> [N, H, D] each."""
        own = self.layer.self_attn
        three = own.q_proj(x) * own.scaling, own.k_proj(x), own.v_proj(x)
        return tuple(one.unflatten(-1, (self.heads, -1)) for one in three)  # type: ignore[return-value]

    def keys_values(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Makes keys and values alone, of states [N, C] before the layer: [N, H, D] each."""
        own = self.layer.self_attn
        x = self.layer.self_attn_layer_norm(x) if self.layer.normalize_before else x
        return own.k_proj(x).unflatten(-1, (self.heads, -1)), own.v_proj(x).unflatten(-1, (self.heads, -1))

    def attention_out(self, x: Tensor) -> Tensor:
        """Ends self-attention: [N, C] -> [N, C]."""
        return self.layer.self_attn.out_proj(x)

    def cross_query(self, x: Tensor) -> Tensor:
        """Makes the queries of cross-attention, scaled: [N, C] -> [N, H, D]."""
        cross = self.layer.encoder_attn
        return (cross.q_proj(x) * cross.scaling).unflatten(-1, (self.heads, -1))

    def cross_out(self, x: Tensor) -> Tensor:
        """Ends cross-attention: [N, C] -> [N, C]."""
        return self.layer.encoder_attn.out_proj(x)

    def source(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Makes the keys and values of the source: [S', B, C] -> [B, H, S', D] each."""
        cross = self.layer.encoder_attn
        both = (one(x.transpose(0, 1)) for one in (cross.k_proj, cross.v_proj))  # [B, S', C] each
        keys, values = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in both)
        return keys, values


class ExitLayer:
    """One decoder layer during a search: what it computes, the keys and values of its rows and of the source.

    Args:
        parts: :class:`ModuleParts`, or what has its calls.
        keys, values: of the source, [B, H, S', D].
        hidden: BoolTensor [B, 1, 1, S'], True = padding; None = there is none.
        beam: rows a sentence.
        dtype: of the keys and values of the rows.
    """

    def __init__(
        self, parts: Any, keys: Tensor, values: Tensor, hidden: Optional[Tensor], beam: int, dtype: torch.dtype
    ):
        self.parts, self.beam = parts, beam
        self.source_keys, self.source_values, self.hidden = keys, values, hidden
        size = keys.size(0) * beam, keys.size(1), FIRST_STEPS, keys.size(3)
        self.keys, self.values = (torch.zeros(size, dtype=dtype, device=keys.device) for _ in range(2))

    def select(self, rows: Tensor, sentences: Tensor) -> None:
        """Keeps the rows and sentences of these orders."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        if sentences.numel() == self.source_keys.size(0):  # they only change where sentences leave
            return
        self.source_keys = self.source_keys.index_select(0, sentences)
        self.source_values = self.source_values.index_select(0, sentences)
        self.hidden = None if self.hidden is None else self.hidden.index_select(0, sentences)

    def fill(self, x: Tensor, row_of: Tensor, positions: Tensor) -> None:
        """Makes the keys and values of tokens [N, C] that do not run the layer."""
        self._write(*self.parts.keys_values(x), row_of, positions)

    def _write(self, keys: Tensor, values: Tensor, row_of: Tensor, positions: Tensor) -> None:
        while int(positions.max()) >= self.keys.size(2):
            self.keys, self.values = (
                torch.cat([one, torch.zeros_like(one)], dim=2) for one in (self.keys, self.values)
            )
        self.keys[row_of, :, positions] = keys.to(self.keys.dtype)
        self.values[row_of, :, positions] = values.to(self.values.dtype)

    def run(self, x: Tensor, tokens: Tokens, steps: int) -> Tensor:
        """Runs the layer: [N, C] -> [N, C].

        Args:
            x: states of ``tokens``.
            tokens: who runs.
            steps: positions that are written, those of ``tokens`` included.
        """
        x = self.parts.attention(x, lambda y: self._attend_before(y, tokens, steps))
        x = self.parts.cross(x, lambda y: self._attend_source(y, tokens))
        return self.parts.ffn(x)

    def _attend_before(self, x: Tensor, tokens: Tokens, steps: int) -> Tensor:
        queries, new_keys, new_values = self.parts.project(x)
        self._write(new_keys, new_values, tokens.row_of, tokens.positions)
        keys, values = self.keys[:, :, :steps], self.values[:, :, :steps]
        if tokens.rows is not None:
            keys, values = keys.index_select(0, tokens.rows), values.index_select(0, tokens.rows)
        hidden = None
        if tokens.width > 1:  # what comes later than a token; padding sees the first one
            padded = torch.zeros(keys.size(0) * tokens.width, dtype=torch.long, device=x.device)
            padded = padded.index_copy(0, tokens.places, tokens.positions).view(keys.size(0), 1, tokens.width, 1)
            hidden = torch.arange(steps, device=x.device) > padded  # [K, 1, M, steps]
        return self.parts.attention_out(attend(queries, tokens.places, tokens.width, keys, values, hidden))

    def _attend_source(self, x: Tensor, tokens: Tokens) -> Tensor:
        width, keys, values, hidden = tokens.width, self.source_keys, self.source_values, self.hidden
        if tokens.rows is None:
            width = self.beam  # the hypotheses of a sentence stand side by side
        else:
            sentences = torch.div(tokens.rows, self.beam, rounding_mode="floor")
            keys, values = keys.index_select(0, sentences), values.index_select(0, sentences)
            hidden = None if hidden is None else hidden.index_select(0, sentences)
        return self.parts.cross_out(attend(self.parts.cross_query(x), tokens.places, width, keys, values, hidden))


def attend(
    queries: Tensor, places: Tensor, width: int, keys: Tensor, values: Tensor, hidden: Optional[Tensor]
) -> Tensor:
    """Attention of tokens in a list over the keys of their rows: [N, H, D] -> [N, H * D].

    Args:
        queries: scaled.
        places, width: see :class:`Tokens`.
        keys, values: [K, H, n, D].
        hidden: BoolTensor that fits [K, H, M, n], True = not to be seen; None = all is seen.
    """
    count, heads, dim = queries.size()
    padded, dtype = keys.size(0) * width, queries.dtype
    if padded != count:
        queries = queries.new_zeros(padded, heads, dim).index_copy(0, places, queries)
    queries = queries.view(-1, width, heads, dim).transpose(1, 2)  # [K, H, M, D]
    scores = (queries.to(keys.dtype) @ keys.transpose(2, 3)).float()
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    output = torch.softmax(scores, dim=-1).to(values.dtype) @ values  # [K, H, M, D]
    output = output.transpose(1, 2).reshape(padded, heads * dim).to(dtype)
    return output if padded == count else output.index_select(0, places)
