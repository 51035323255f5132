"""The answers of a search of a decoder-only model: prompt and answer are one cache, the prompt held once a sentence."""

from __future__ import annotations

from typing import Any, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_fairseq.execution.beam_cache import AncestryMask, SelfAttentionCache, Slots, cache_dtype, for_heads
from sd_fairseq.execution.sublayers import KeptRows, run_kept_rows
from sd_fairseq.plugin.generation.fast_decoder import DecoderSearch, kept_list, select_masks
from sd_fairseq.plugin.generation.fast_llama import FastLlamaWeights, LlamaLayerWeights
from sd_fairseq.plugin.generation.fast_prompt import ReadPrompts


class AnswerLayer:
    """One layer during a search: its weights, its cache, and who keeps what.

    Args:
        layer: its weights.
        prompts: what was read.
        beam: hypotheses a sentence.
        index: of the layer, from 0.
        device: of the cache.
    """

    def __init__(self, layer: LlamaLayerWeights, prompts: ReadPrompts, beam: int, index: int, device: torch.device):
        self.layer, self.beam = layer, beam
        decisions, prefix = prompts.decisions, prompts.prefixes[index]
        keeps = decisions.decoder_attention[:, index], decisions.decoder_ffn[:, index]
        self.slots = [Slots(kept_list(keep)) for keep in keeps]
        self.cache: Optional[SelfAttentionCache] = None
        if prefix is not None:
            size = prefix.size(1), layer.key_heads, layer.head_dim, beam
            self.cache = SelfAttentionCache(*size, prefix.dtype, device, prefix)
        self._find_rows(device)

    def _find_rows(self, device: torch.device) -> None:
        self.attention_rows, self.ffn_rows = (one.rows(self.beam, device) for one in self.slots)
        kept = self.slots[0].kept
        self.attention_slots = None if kept is None else torch.tensor(kept, dtype=torch.long, device=device)

    def remove(self, slot: int, last: int, device: torch.device) -> None:
        """Takes a finished sentence out; arguments as :meth:`Slots.remove`."""
        moves = [slots.remove(slot, last) for slots in self.slots]
        if self.cache is not None:
            self.cache.move(*moves[0])
        self._find_rows(device)

    def run(self, x: Tensor, step: int, mask: Optional[Tensor], turns: Tensor) -> Tensor:
        """Runs one step: [R, C] -> [R, C].

        Args:
            x: the rows' states.
            step: from 0.
            mask: [B * H, beam, S' + (step + 1) * beam], prompt and answer, or None.
            turns: complex [R, 1, D / 2].
        """

        def attention(part: Tensor, kept: KeptRows) -> Tensor:
            own = turns if kept is None else turns.index_select(0, kept)
            return self.layer.attention_residual(part, lambda y: self._attend(y, step, mask, own))

        def ffn(part: Tensor, _: KeptRows) -> Tensor:
            return self.layer.ffn_residual(part, self.layer.ffn)

        x = run_kept_rows(attention, x, self.attention_rows, dim=0)
        return run_kept_rows(ffn, x, self.ffn_rows, dim=0)

    def _attend(self, x: Tensor, step: int, mask: Optional[Tensor], turns: Tensor) -> Tensor:
        layer, cache = self.layer, self.cache
        assert cache is not None, "rows that keep attention have a cache"
        queries, keys, values = (one.unflatten(0, (-1, self.beam)) for one in layer.project(x, turns))
        cache.append(torch.stack([keys, values.to(keys.dtype)]).transpose(2, 3), step)  # of [2, K, H_kv, beam, D]
        attended = cache.attend(queries, step, select_masks(mask, self.attention_slots, layer.heads))
        return layer.attention_out(attended.to(x.dtype))


class PromptMask:
    """What hides the padding of prompts, beside what hides other hypotheses' tokens.

    Args:
        hidden: BoolTensor [B, S'], True = padding.
        dtype: of the attention scores that the mask is added to.
    """

    def __init__(self, hidden: Tensor, dtype: torch.dtype):
        self.pads = bool(hidden.any())
        scores = torch.zeros(hidden.size(), dtype=dtype, device=hidden.device)
        self.scores = scores.masked_fill(hidden, float("-inf")).unsqueeze(1)  # [B, 1, S']

    def joined(self, ancestry: Optional[AncestryMask], step: int) -> Optional[Tensor]:
        """Returns [B, beam, S' + (step + 1) * beam], or None where nothing is hidden."""
        if ancestry is not None:
            own = ancestry.upto(step)
            return torch.cat([self.scores.expand(-1, own.size(1), -1), own], dim=2)
        return F.pad(self.scores, (0, step + 1)) if self.pads else None

    def move(self, target: int, source: int, count: int) -> None:
        """Puts sentence ``source`` in the place of ``target`` and keeps the first ``count`` sentences."""
        if target != source:
            self.scores[target] = self.scores[source]
        self.scores = self.scores[:count]


class AnswerSearch(DecoderSearch):
    """The answers' state during one search.

    Args:
        model: a switchable decoder-only model.
        weights: the model's, packed.
        source: what was read of the prompts.
        beam: hypotheses a sentence.
    """

    weights: FastLlamaWeights

    def __init__(self, model: Any, weights: FastLlamaWeights, source: ReadPrompts, beam: int):
        super().__init__(model, weights, source, beam)
        dtype = cache_dtype(weights.precision.dtype, self.device)
        self.masks = [PromptMask(hidden, dtype) for hidden in source.hidden]  # of layer 1, and of the others
        self.starts = torch.tensor(source.lengths, device=self.device)  # of every slot's answer
        self.longest, self.first_inputs = max(source.lengths), source.last_tokens

    def _build_layers(self, source: ReadPrompts) -> List[Any]:
        layers = enumerate(self.weights.decoder_layers)
        return [AnswerLayer(layer, source, self.beam, index, self.device) for index, layer in layers]

    def _embed(self, tokens: Tensor) -> Tensor:
        newest = tokens[:, -1] if self.steps else self.first_inputs.repeat_interleave(self.beam)
        return self.weights.embed_tokens(newest, (self.starts + self.steps).repeat_interleave(self.beam))

    def _run_layers(self, x: Tensor, step: int) -> Tensor:
        turns = self.weights.turns.of(self.starts + step, self.longest + step).repeat_interleave(self.beam, dim=0)
        heads = self.weights.decoder_layers[0].heads
        joined = [mask.joined(self.ancestry, step) for mask in self.masks]
        first, rest = (None if mask is None else for_heads(mask, heads) for mask in joined)
        for index, layer in enumerate(self.layers):
            x = layer.run(x, step, rest if index else first, turns)
        return self.weights.decoder_norm(x)

    def _run_head(self, x: Tensor) -> Tensor:
        return self.weights.logits(x)

    def _remove(self, slot: int, last: int) -> None:
        super()._remove(slot, last)
        for mask in self.masks:
            mask.move(slot, last, last)
        self.starts[slot] = self.starts[last]
        self.starts = self.starts[:last]
