"""The decoder of a search: one step for all hypotheses, caches written in place, skipped sub-layers not touched.

Rows stand in the order of *slots*, hypotheses of a sentence together. A sentence that is finished leaves its slot to
the last one, so one sentence's caches move and not all of them; the search's own order is translated at the door.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from sd_fairseq.execution.beam_cache import AncestryMask, SelfAttentionCache, Slots, cache_dtype, for_heads
from sd_fairseq.execution.sublayers import KeptRows, run_kept_rows
from sd_fairseq.plugin.generation.fast_encoder import EncodedSource
from sd_fairseq.plugin.generation.fast_weights import FastWeights, LayerWeights
from sd_fairseq.plugin.generation.source_cache import CrossAttentionCache


class LayerSearch:
    """One decoder layer during a search: its weights, its caches, and who keeps what.

    Args:
        layer: its weights.
        source: the encoder's output.
        beam: hypotheses a sentence.
        index: of the layer, from 0.
        keeps_norm: a skipped sub-layer still applies its LayerNorm.
    """

    source_cache: Any = CrossAttentionCache

    def __init__(self, layer: LayerWeights, source: EncodedSource, beam: int, index: int, keeps_norm: bool):
        self.layer, self.beam, self.keeps_norm = layer, beam, keeps_norm
        decisions, device = source.decisions, source.x.device
        attention, cross = decisions.decoder_attention[:, index], decisions.decoder_cross_attention[:, index]
        self.slots = [Slots(kept_list(keep)) for keep in (attention, cross, decisions.decoder_ffn[:, index])]
        self.self_cache: Optional[SelfAttentionCache] = None
        self.cross_cache: Any = None
        kept = int(attention.sum())
        if kept:
            dtype = cache_dtype(source.x.dtype, device)
            self.self_cache = SelfAttentionCache(kept, layer.heads, layer.head_dim, beam, dtype, device)
        if bool(cross.any()):
            self.cross_cache = self.source_cache(layer, source, self.slots[1].kept)
        self._find_rows(device)

    def _find_rows(self, device: torch.device) -> None:
        self.attention_rows, self.cross_rows, self.ffn_rows = (one.rows(self.beam, device) for one in self.slots)
        kept = self.slots[0].kept
        self.attention_slots = None if kept is None else torch.tensor(kept, dtype=torch.long, device=device)

    def remove(self, slot: int, last: int, device: torch.device) -> None:
        """Takes a finished sentence out; arguments as :meth:`Slots.remove`."""
        moves = [slots.remove(slot, last) for slots in self.slots]
        if self.self_cache is not None:
            self.self_cache.move(*moves[0])
        if self.cross_cache is not None:
            self.cross_cache.move(*moves[1])
        self._find_rows(device)

    def end(self, device: torch.device) -> None:
        """Lets no sentence run the layer any more."""
        self.slots = [Slots([]) for _ in self.slots]
        self.self_cache = self.cross_cache = None
        self._find_rows(device)

    def run(self, x: Tensor, step: int, mask: Optional[Tensor]) -> Tensor:
        """Runs one step: [R, C] -> [R, C]; ``mask`` is :meth:`AncestryMask.upto`'s for all heads."""
        layer = self.layer
        norms: Tuple[Any, Any, Any] = (None, None, None)
        if self.keeps_norm:
            norms = (layer.attention_residual.norm, layer.cross_residual.norm, layer.ffn_residual.norm)

        def attention(part: Tensor, _: KeptRows) -> Tensor:
            return layer.attention_residual(part, lambda y: self._self_attention(y, step, mask))

        def cross(part: Tensor, _: KeptRows) -> Tensor:
            return layer.cross_residual(part, self._cross_attention)

        def ffn(part: Tensor, _: KeptRows) -> Tensor:
            return layer.ffn_residual(part, layer.ffn)

        x = run_kept_rows(attention, x, self.attention_rows, norms[0], dim=0)
        x = run_kept_rows(cross, x, self.cross_rows, norms[1], dim=0)
        return run_kept_rows(ffn, x, self.ffn_rows, norms[2], dim=0)

    def _self_attention(self, x: Tensor, step: int, mask: Optional[Tensor]) -> Tensor:
        layer, cache = self.layer, self.self_cache
        assert cache is not None, "rows that keep self-attention have a cache"
        qkv = layer.qkv(x).view(-1, self.beam, 3, layer.heads, layer.head_dim)  # [K, beam, 3, H, D]
        cache.append(qkv[:, :, 1:].permute(2, 0, 3, 1, 4), step)
        return layer.attention_out(
            cache.attend(qkv[:, :, 0], step, select_masks(mask, self.attention_slots, layer.heads))
        )

    def _cross_attention(self, x: Tensor) -> Tensor:
        layer, cache = self.layer, self.cross_cache
        assert cache is not None, "rows that keep cross-attention have a cache"
        queries = layer.cross_query(x).view(-1, self.beam, layer.heads, layer.head_dim)  # [K, beam, H, D]
        return layer.cross_out(cache.attend(queries))


class DecoderSearch:
    """The decoder's state during one search.

    Args:
        model: a switchable model.
        weights: the model's, packed.
        source: the encoder's output.
        beam: hypotheses a sentence.
    """

    layer_search: Any = LayerSearch

    def __init__(self, model: Any, weights: FastWeights, source: Any, beam: int):
        self.weights, self.beam, self.device, self.rule = weights, beam, weights.device, model.decoder.rule
        sentences = len(source.lengths)
        self.layers = self._build_layers(replace(source, decisions=self.rule.narrow(source.decisions, 0)))
        self.ancestry = self._build_ancestry(sentences)
        self.slot_of = list(range(sentences))  # of every sentence of the search that is not finished, in its order
        self._find_order()
        self.steps = 0

    def _build_layers(self, source: Any) -> List[Any]:
        keeps_norm, layers = self.weights.keeps_norm, enumerate(self.weights.decoder_layers)
        return [self.layer_search(layer, source, self.beam, index, keeps_norm) for index, layer in layers]

    def _build_ancestry(self, sentences: int) -> Any:
        if self.beam == 1:
            return None
        dtype = cache_dtype(self.weights.precision.dtype, self.device)
        return AncestryMask(sentences, self.beam, dtype, self.device)

    def step(self, tokens: Tensor) -> Tensor:
        """Decodes one step.

        Args:
            tokens: LongTensor [R, step + 1] in the search's order.

        Returns:
            Logits [R, V] in the search's order.
        """
        ending = self.rule.layers_ending(self.steps) if self.steps else []
        if ending:
            self._end_layers(ending)
        tokens = tokens if self.slot_rows is None else tokens.index_select(0, self.search_rows)
        x = self._run_layers(self._embed(tokens), self.steps)
        self.steps += 1
        return self._run_head(x if self.slot_rows is None else x.index_select(0, self.slot_rows))

    def _end_layers(self, ending: Sequence[int]) -> None:
        """Runs the layers ``ending`` (from 0) no longer."""
        for index in ending:
            self.layers[index].end(self.device)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Embeds the newest of [R, step + 1] tokens: [R, C]."""
        return self.weights.embed_step(tokens)

    def _run_layers(self, x: Tensor, step: int) -> Tensor:
        """Runs everything between embedding and logits on [R, C]."""
        if self.weights.embedding_norm is not None:
            x = self.weights.embedding_norm(x)
        heads = self.weights.decoder_layers[0].heads
        mask = None if self.ancestry is None else for_heads(self.ancestry.upto(step), heads)
        bias = self.weights.step_bias(step)
        if bias is not None:
            mask = add_bias(mask, bias, len(self.slot_of), self.beam)
        for layer in self.layers:
            x = layer.run(x, step, mask)
        return x if self.weights.decoder_norm is None else self.weights.decoder_norm(x)

    def _run_head(self, x: Tensor) -> Tensor:
        """Makes logits: [R, C] -> [R, V]."""
        return self.weights.head(x)

    def reorder(self, new_order: Tensor) -> None:
        """Follows the search to its next step.

        Args:
            new_order: LongTensor [R'], the row before of every row after, sentence by sentence in the search's order;
                fewer rows than before where sentences are finished.
        """
        order = new_order.view(-1, self.beam)
        if order.size(0) < len(self.slot_of):
            self._keep_sentences(torch.div(order[:, 0], self.beam, rounding_mode="floor").tolist())
        if self.ancestry is not None:
            parents = order % self.beam
            if self.sentence_order is not None:
                parents = parents.index_select(0, self.sentence_order)
            self.ancestry.reorder(parents, self.steps)

    def _keep_sentences(self, kept: List[int]) -> None:
        """Takes out every sentence of the search but those at the places ``kept``."""
        finished = [slot for place, slot in enumerate(self.slot_of) if place not in set(kept)]
        self.slot_of = [self.slot_of[place] for place in kept]
        last = len(self.slot_of) + len(finished) - 1
        for slot in sorted(finished, reverse=True):  # the highest first, so that the last slot is never a finished one
            self._remove(slot, last)
            self.slot_of = [slot if one == last else one for one in self.slot_of]
            last -= 1
        self._find_order()

    def _remove(self, slot: int, last: int) -> None:
        """Takes out a finished sentence; the one in slot ``last``, the highest, moves to its slot."""
        for layer in self.layers:
            layer.remove(slot, last, self.device)
        if self.ancestry is not None:
            self.ancestry.move(slot, last, last)

    def _find_order(self) -> None:
        """Finds the rows that translate between the search's order and the slots'; None where they are the same."""
        self.slot_rows: Optional[Tensor] = None
        self.search_rows: Optional[Tensor] = None
        self.sentence_order: Optional[Tensor] = None
        if self.slot_of == sorted(self.slot_of):
            return
        self.slot_rows = Slots(self.slot_of).rows(self.beam, self.device)
        place_of = sorted(range(len(self.slot_of)), key=self.slot_of.__getitem__)
        self.search_rows = Slots(place_of).rows(self.beam, self.device)
        self.sentence_order = torch.tensor(place_of, dtype=torch.long, device=self.device)


def select_masks(mask: Optional[Tensor], slots: Optional[Tensor], heads: int) -> Optional[Tensor]:
    """Selects the heads' masks [B * H, beam, N] of the sentences in ``slots``; None = of all."""
    if mask is None or slots is None:
        return mask
    return mask.view(-1, heads, mask.size(1), mask.size(2)).index_select(0, slots).flatten(0, 1)


def add_bias(mask: Optional[Tensor], bias: Tensor, sentences: int, beam: int) -> Tensor:
    """Adds a score bias of the steps to a search's mask; the hypotheses of a step stand side by side.

    Args:
        mask: [B * H, beam, steps * beam] or None.
        bias: [H, steps].
        sentences: B.
        beam: hypotheses a sentence.

    Returns:
        [B * H, beam, steps * beam].
    """
    spread = bias.repeat_interleave(beam, dim=1).unsqueeze(1).repeat(sentences, 1, 1)  # [B * H, 1, steps * beam]
    return spread if mask is None else mask + spread.to(mask.dtype)


def kept_list(keep: Tensor) -> Optional[List[int]]:
    """Returns the indices where BoolTensor [B] is True, None where all are."""
    return None if bool(keep.all()) else keep.nonzero().flatten().tolist()
