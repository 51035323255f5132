"""A decoder-only model reads its prompts without padding: the tokens of all sentences in one row of a matrix.

What is left of them are the keys and values of every layer, held once a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.execution.beam_cache import cache_dtype
from sd_fairseq.execution.rotation import pair_order
from sd_fairseq.execution.sublayers import KeptRows, find_kept_rows, run_kept_rows
from sd_fairseq.plugin.generation.fast_encoder import decide, token_rows
from sd_fairseq.plugin.generation.fast_llama import FastLlamaWeights, LlamaLayerWeights
from sd_fairseq.plugin.models.prompt_stacks import align_right


@dataclass(frozen=True)
class ReadPrompts:
    """What a search needs of the prompts.

    Args:
        lengths: of every prompt, where its answer's positions begin.
        decisions: one path a sentence.
        prefixes: of every layer, keys and values [2, K, H_kv, S', D] of the sentences that keep its attention, or None.
        hidden: of layer 1, and of the others: BoolTensor [B, S'], True = padding.
        last_tokens: LongTensor [B], the answers' first inputs.
    """

    lengths: List[int]
    decisions: Decisions
    prefixes: List[Optional[Tensor]]
    hidden: Tuple[Tensor, Tensor]
    last_tokens: Tensor


class Tokens:
    """The tokens that are present.

    Args:
        weights: the model's, packed.
        positions: LongTensor [N], of all sentences' tokens, one sentence after the other.
        lengths: of the sentences.
        longest: no position is larger.
    """

    def __init__(self, weights: FastLlamaWeights, positions: Tensor, lengths: List[int], longest: int):
        self.positions, self.lengths = positions, lengths
        self.turns = weights.turns.of(positions, longest)

    def hidden(self) -> Tensor:
        """Returns the padding that rows of one length have, BoolTensor [B, S']."""
        return torch.arange(max(self.lengths)).unsqueeze(0) >= torch.tensor(self.lengths).unsqueeze(1)


def read_prompts(model: Any, weights: FastLlamaWeights, net_input: Dict[str, Any]) -> ReadPrompts:
    """Reads a batch of prompts along the deployed path.

    Args:
        model: a switchable decoder-only model whose policy decides once, after layer 1.
        weights: the model's, packed.
        net_input: as :func:`~sd_fairseq.plugin.generation.fast_encoder.encode`'s.
    """
    encoder = model.encoder
    src_tokens = encoder.choose_tokens(net_input["src_tokens"])  # [B, S]
    real = src_tokens.ne(encoder.padding_idx)
    lengths: List[int] = real.sum(dim=1).tolist()
    positions = (real.cumsum(dim=1) - 1)[real]  # [N]
    tokens = first = Tokens(weights, positions, lengths, max(lengths))
    prefixes: List[Optional[Tensor]] = []
    x = weights.embed_tokens(src_tokens[real], positions)  # [N, C]
    x = run_layer(weights.decoder_layers[0], x, tokens, None, None, prefixes)
    decisions, keep = decide(encoder, net_input, src_tokens, x)
    if keep is not None:
        kept = keep[real]  # [N]
        x, tokens = x[kept], Tokens(weights, positions[kept], keep.sum(dim=1).tolist(), max(lengths))
    attention, ffn = find_kept_rows(decisions.encoder_attention), find_kept_rows(decisions.encoder_ffn)
    for index in range(1, len(weights.decoder_layers)):
        x = run_layer(weights.decoder_layers[index], x, tokens, attention[index], ffn[index], prefixes)
    last = last_tokens(net_input["src_tokens"], encoder.padding_idx)
    return ReadPrompts(lengths, decisions, prefixes, (first.hidden(), tokens.hidden()), last)


def last_tokens(src_tokens: Tensor, padding: int) -> Tensor:
    """Returns the prompts' last tokens, which stand before the end-of-sentence symbol: [B, S] -> [B]."""
    return align_right(src_tokens, padding)[:, -2]


def run_layer(
    layer: LlamaLayerWeights,
    x: Tensor,
    tokens: Tokens,
    attention: KeptRows,
    ffn: KeptRows,
    prefixes: List[Optional[Tensor]],
) -> Tensor:
    """Runs one layer for the sentences that keep its sub-layers: [N, C] -> [N, C].

    Args:
        layer: its weights.
        x: [N, C].
        tokens: those of ``x``.
        attention, ffn: the sentences that keep each sub-layer.
        prefixes: the layer's keys and values are appended.
    """
    lengths = tokens.lengths if attention is None else [tokens.lengths[one] for one in attention.tolist()]
    prefix: Optional[Tensor] = None

    def attend(part: Tensor, kept: KeptRows) -> Tensor:
        nonlocal prefix
        turns = tokens.turns if kept is None else tokens.turns.index_select(0, kept)
        dtype = cache_dtype(part.dtype, part.device)

        def answer(y: Tensor) -> Tensor:
            nonlocal prefix
            queries, keys, values = (one.to(dtype) for one in layer.project(y, turns))
            prefix = stack(keys, values, lengths, max(tokens.lengths))
            return layer.attention_out(attend_causally(queries, keys, values, lengths).to(y.dtype))

        return layer.attention_residual(part, answer)

    def feed_forward(part: Tensor, _: KeptRows) -> Tensor:
        return layer.ffn_residual(part, layer.ffn)

    if sum(lengths):
        x = run_kept_rows(attend, x, token_rows(attention, tokens.lengths), dim=0)
    elif lengths:  # prompts of one token, which the answer begins with
        prefix = x.new_zeros(2, len(lengths), layer.key_heads, max(tokens.lengths), layer.head_dim)
    prefixes.append(prefix)
    return run_kept_rows(feed_forward, x, token_rows(ffn, tokens.lengths), dim=0) if x.size(0) else x


def attend_causally(queries: Tensor, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attends inside every sentence to what stands before: [N, H, D] and [N, H_kv, D] twice -> [N, H * D]."""
    groups = queries.size(1) // keys.size(1)
    if groups > 1:
        keys, values = (one.repeat_interleave(groups, dim=1) for one in (keys, values))  # [N, H, D]
    attended = []
    for three in zip(*(one.split(list(lengths)) for one in (queries, keys, values))):
        parts = [one.transpose(0, 1).unsqueeze(0) for one in three]  # [1, H, S, D] each
        output = F.scaled_dot_product_attention(*parts, is_causal=True, scale=1.0)
        attended.append(output[0].transpose(0, 1).flatten(1))  # [S, H * D]
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def stack(keys: Tensor, values: Tensor, lengths: Sequence[int], longest: int) -> Tensor:
    """Gives every sentence a row of ``longest``: [N, H_kv, D] twice -> [2, K, H_kv, S', D], zeros behind its end."""
    rows = keys.new_zeros(2, len(lengths), longest, *keys.shape[1:])
    for row, (key, value) in enumerate(zip(keys.split(list(lengths)), values.split(list(lengths)))):
        rows[0, row, : len(key)], rows[1, row, : len(value)] = key, value
    return rows.transpose(2, 3)


def take_prompts(
    model: Any, weights: FastLlamaWeights, net_input: Dict[str, Any], encoder_out: Dict[str, list]
) -> ReadPrompts:
    """Takes what a search needs from the model's own reading.

    Args:
        model, weights, net_input: as :func:`read_prompts`'s.
        encoder_out: the switchable encoder's output.
    """
    encoder = model.encoder
    order = pair_order(weights.decoder_layers[0].head_dim).to(weights.device)
    dtype = cache_dtype(weights.precision.dtype, weights.device)
    prefixes: List[Optional[Tensor]] = []
    for memory in encoder_out["prompt"]:
        both = None if memory is None else torch.stack([memory.keys.index_select(3, order), memory.values])
        prefixes.append(None if both is None else both.to(dtype))
    chosen = encoder.choose_tokens(net_input["src_tokens"])
    hidden = chosen.eq(encoder.padding_idx), encoder_out["encoder_padding_mask"][0]
    lengths = [chosen.size(1)] * chosen.size(0)  # positions count from the padding on
    last = last_tokens(net_input["src_tokens"], encoder.padding_idx)
    return ReadPrompts(lengths, encoder_out["decisions"][0], prefixes, hidden, last)
