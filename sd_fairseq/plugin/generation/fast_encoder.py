"""The encoder without padding: the tokens of all sentences in one row of a matrix, each sentence as long as it is.

Products run over real tokens only, so a batch that mixes lengths or token strategies pays for the tokens it keeps and
not for its longest sentence; attention runs sentence by sentence (together where lengths are equal).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_fairseq.decision.decider import Decider, PathRequest
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.decision.token_strategies import kept_token_mask
from sd_fairseq.execution.native.within import attend_within, kernel_for
from sd_fairseq.execution.sublayers import KeptRows, find_kept_rows, run_kept_rows
from sd_fairseq.plugin.generation.fast_weights import FastWeights, LayerWeights

SCORES_AT_ONCE = 2**21  # attention scores that stay in a cache of some megabytes


@dataclass(frozen=True)
class EncodedSource:
    """What a search needs of the encoder.

    Args:
        x: [N', C], the kept tokens of all sentences, one after the other.
        lengths: S' of every sentence.
        decisions: one path a sentence.
        log: where a trace is kept, what the search counts is appended to it; else None.
    """

    x: Tensor
    lengths: List[int]
    decisions: Decisions
    log: Optional[List[Any]] = None


def encode(model: Any, weights: FastWeights, net_input: Dict[str, Any]) -> EncodedSource:
    """Encodes a batch along the deployed path.

    Args:
        model: a switchable model whose policy decides once, after encoder layer 1.
        weights: the model's, packed.
        net_input: ``src_tokens`` [B, S]; ``decision_log`` where a trace is kept; ``path`` to take another than the
            deployed one; ``first_layer``, what :func:`read_first` gave for every sentence, where that is known.
    """
    encoder = model.encoder
    src_tokens = net_input["src_tokens"]
    real = src_tokens.ne(encoder.padding_idx)  # [B, S]
    lengths = real.sum(dim=1).tolist()
    bias = weights.source_bias(lengths)
    known = net_input.get("first_layer")
    x = run_first(weights, src_tokens, real, lengths, bias) if known is None else torch.cat(known)
    decisions, keep = decide(encoder, net_input, src_tokens, x)
    if keep is not None:
        x, lengths = x[keep[real]], keep.sum(dim=1).tolist()  # [N', C]
        bias = weights.source_bias(lengths, keep)
    attention, ffn = find_kept_rows(decisions.encoder_attention), find_kept_rows(decisions.encoder_ffn)
    for index in range(1, len(weights.encoder_layers)):
        layer = weights.encoder_layers[index]
        x = run_layer(layer, x, lengths, attention[index], ffn[index], weights.keeps_norm, bias)
    if weights.encoder_norm is not None:
        x = weights.encoder_norm(x)
    return EncodedSource(x, lengths, decisions, net_input.get("decision_log"))


def run_first(
    weights: FastWeights, src_tokens: Tensor, real: Tensor, lengths: List[int], bias: Optional[List[Tensor]]
) -> Tensor:
    """Embeds and runs layer 1: LongTensor [B, S], of which BoolTensor [B, S] is no padding -> [N, C]."""
    x = weights.embed_source(src_tokens)[real].to(weights.stream)
    return run_layer(weights.encoder_layers[0], x, lengths, None, None, False, bias)


def read_first(model: Any, weights: FastWeights, net_input: Dict[str, Any]) -> Tuple[Decisions, List[Tensor]]:
    """Returns what a batch's policy decides, and layer 1's output [S, C] of every sentence; the rest does not run."""
    src_tokens = net_input["src_tokens"]
    real = src_tokens.ne(model.encoder.padding_idx)
    lengths = real.sum(dim=1).tolist()
    x = run_first(weights, src_tokens, real, lengths, weights.source_bias(lengths))
    without_log = {name: value for name, value in net_input.items() if name != "decision_log"}
    return decide(model.encoder, without_log, src_tokens, x)[0], list(x.split(lengths))


def decide(
    encoder: Any, net_input: Dict[str, Any], src_tokens: Tensor, x: Tensor
) -> Tuple[Decisions, Optional[Tensor]]:
    """Asks the policy, once, and notes what it decides where a trace is kept.

    Args:
        encoder: of a switchable model.
        net_input: see :func:`encode`.
        src_tokens: LongTensor [B, S], what layer 1 ran.
        x: [N, C], layer 1's output for the tokens that are no padding.

    Returns:
        The decisions; and BoolTensor [B, S], the tokens that are not dropped, or None where none is.
    """
    padding_mask = src_tokens.eq(encoder.padding_idx)
    padded = x.new_zeros(*src_tokens.size(), x.size(-1))  # [B, S, C]
    padded[~padding_mask] = x
    path = net_input.get("path", PathRequest())
    decider = Decider(encoder.space, encoder.policy, path, src_tokens, padding_mask)
    decider.decide(1, encoder.view_for_policy(padded.transpose(0, 1)))
    decisions = decider.decisions()
    if net_input.get("decision_log") is not None:
        net_input["decision_log"].append(decisions)
    if not bool((decisions.token_choice != 0).any()):
        return decisions, None
    return decisions, kept_token_mask(padding_mask, decisions.token_choice, encoder.space.token_strategies)


def run_layer(
    layer: LayerWeights,
    x: Tensor,
    lengths: Sequence[int],
    attention: KeptRows,
    ffn: KeptRows,
    keeps_norm: bool,
    bias: Optional[List[Tensor]] = None,
) -> Tensor:
    """Runs one encoder layer for the sentences that keep its sub-layers: [N, C] -> [N, C].

    Args:
        layer: its weights.
        x: [N, C].
        lengths: of the sentences, summing to N.
        attention, ffn: the sentences that keep each sub-layer.
        keeps_norm: a skipped sub-layer still applies its LayerNorm.
        bias: see :meth:`FastWeights.source_bias`.
    """
    kept = range(len(lengths)) if attention is None else attention.tolist()
    kept_lengths = [lengths[sentence] for sentence in kept]
    kept_bias = None if bias is None else [bias[sentence] for sentence in kept]

    def attend(part: Tensor, _: KeptRows) -> Tensor:
        return layer.attention_residual(
            part, lambda y: layer.attention_out(self_attention(layer, y, kept_lengths, kept_bias))
        )

    def feed_forward(part: Tensor, _: KeptRows) -> Tensor:
        return layer.ffn_residual(part, layer.ffn)

    attention_norm = layer.attention_residual.norm if keeps_norm else None
    ffn_norm = layer.ffn_residual.norm if keeps_norm else None
    x = run_kept_rows(attend, x, token_rows(attention, lengths), attention_norm, dim=0)
    return run_kept_rows(feed_forward, x, token_rows(ffn, lengths), ffn_norm, dim=0)


def self_attention(
    layer: LayerWeights, x: Tensor, lengths: Sequence[int], bias: Optional[List[Tensor]] = None
) -> Tensor:
    """Attends inside every sentence: [N, C] -> [N, A], before the output projection."""
    heads, dim = layer.heads, layer.head_dim
    qkv = layer.qkv(x)
    kernel = kernel_for(qkv, heads) if bias is None else None
    if kernel is not None:
        return attend_within(kernel, qkv, lengths, heads)
    qkv = qkv.view(-1, 3, heads, dim)  # [N, 3, H, D]
    if bias is not None:
        return torch.cat([attend_biased(*pair) for pair in zip(qkv.split(list(lengths)), bias)])
    if len(set(lengths)) == 1:
        groups = [qkv.view(len(lengths), lengths[0], 3, heads, dim)]
    else:
        groups = [part.unsqueeze(0) for part in qkv.split(list(lengths))]  # [1, S, 3, H, D] each
    attended = []
    for group in groups:
        queries, keys, values = group.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, S, D] each
        output = attend_sentences(queries, keys, values)
        attended.append(output.transpose(1, 2).reshape(-1, heads * dim))
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def attend_biased(qkv: Tensor, bias: Tensor) -> Tensor:
    """Attention of one sentence over itself: [S, 3, H, D] and [H, S, S] -> [S, A]."""
    queries, keys, values = qkv.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)  # [1, H, S, D] each
    mask = bias.to(qkv.dtype).unsqueeze(0)
    output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=1.0)
    return output.transpose(1, 2).reshape(qkv.size(0), -1)


def attend_sentences(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of sentences without padding over themselves: [B, H, S, D] each, queries scaled.

    Choice: on a CPU PyTorch's fused kernel computes bfloat16 at float32's speed; three plain products of some heads
    at a time, whose scores stay in the cache, take half of its time. In float32 the fused kernel is the faster one.
    """
    if queries.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    sentences, heads, length, dim = queries.size()
    together = max(1, min(sentences * heads, SCORES_AT_ONCE // (length * length)))
    flat = [part.reshape(sentences * heads, length, dim) for part in (queries, keys, values)]
    output = torch.empty_like(flat[0])
    for start in range(0, sentences * heads, together):
        query, key, value = (part[start : start + together] for part in flat)
        weights = torch.softmax(torch.bmm(query, key.transpose(1, 2)), dim=-1)  # [heads, S, S]
        torch.bmm(weights, value, out=output[start : start + together])
    return output.view(sentences, heads, length, dim)


def token_rows(sentences: KeptRows, lengths: Sequence[int]) -> KeptRows:
    """Returns the rows of the kept sentences' tokens, or None for all of them."""
    if sentences is None:
        return None
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    parts = [torch.arange(starts[one], starts[one + 1]) for one in sentences.tolist()]
    rows: Tensor = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
    return rows.to(sentences.device)


def flatten_encoder_out(
    model: Any, weights: FastWeights, net_input: Dict[str, Any], encoder_out: Dict[str, list]
) -> EncodedSource:
    """Takes the padding out of the switchable encoder's own output."""
    x, padding_mask = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
    real = ~padding_mask  # [B, S']
    flat = x.transpose(0, 1)[real].to(weights.precision.dtype)
    lengths, decisions = real.sum(dim=1).tolist(), encoder_out["decisions"][0]
    return EncodedSource(flat, lengths, decisions, net_input.get("decision_log"))
