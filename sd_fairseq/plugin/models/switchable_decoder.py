"""fairseq's BART decoder that follows the encoder's decisions, with caches of the rows that keep each sub-layer."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer.transformer_decoder import TransformerDecoderBase
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from sd_fairseq.execution.decoder_plan import DecoderPlan, compact_order
from sd_fairseq.execution.tokens import restore_positions
from sd_fairseq.plugin.models.switchable_layers import LayerRows, SwitchableDecoderLayer

IncrementalState = Dict[str, Dict[str, Optional[Tensor]]]


class SwitchableDecoder(TransformerDecoderBase):
    """A transformer decoder that skips what the decisions in ``encoder_out`` say.

    Args:
        cfg: fairseq's transformer configuration.
        dictionary: fairseq dictionary.
        embed_tokens: embedding of the target.
        skip_keeps_layer_norm: see :class:`SwitchableDecoderLayer`.
        attention_layer: layer (from 0) whose cross-attention is returned by default: the one that always runs.
    """

    def __init__(self, cfg, dictionary, embed_tokens: nn.Embedding, skip_keeps_layer_norm: bool, attention_layer: int):
        self.skip_keeps_layer_norm = skip_keeps_layer_norm
        super().__init__(cfg, dictionary, embed_tokens)
        self.attention_layer = attention_layer

    def build_decoder_layer(self, cfg, no_encoder_attn: bool = False) -> nn.Module:
        layer: nn.Module = SwitchableDecoderLayer(cfg, self.skip_keeps_layer_norm)
        if cfg.checkpoint_activations:
            layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
        return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict[str, list]],
        incremental_state: Optional[IncrementalState] = None,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
    ) -> Tuple[Tensor, Dict[str, list]]:
        """As fairseq's, along the decided paths.

        Args:
            prev_output_tokens: LongTensor [R, T]; R = sentences * beam rows.
            encoder_out: the switchable encoder's output.
            incremental_state: caches of a search, or None in teacher forcing.
            full_context_alignment, alignment_layer, alignment_heads: as fairseq's.

        Returns:
            Features [R, T, C]; ``attn`` [[R, T, S]] over the original source positions and ``inner_states``.
        """
        if encoder_out is None:
            raise ValueError("the switchable decoder needs the switchable encoder's output, found None")
        plan = self._plan(encoder_out, incremental_state, prev_output_tokens.size(0))
        x, padding_mask = self._embed(prev_output_tokens, incremental_state)  # [T, R, C]
        source = encoder_out["encoder_out"][0]  # [S', B, C]
        source_padding = encoder_out["encoder_padding_mask"][0] if encoder_out["encoder_padding_mask"] else None
        wanted_layer = self.attention_layer if alignment_layer is None else alignment_layer
        gates = encoder_out["gates"][0] if encoder_out.get("gates") else None
        causal = incremental_state is None and not full_context_alignment
        attention: Optional[Tensor] = None
        inner_states: List[Tensor] = [x]
        for index, layer in enumerate(self.layers):
            rows = LayerRows(plan.attention_rows[index], plan.ffn_rows[index], plan.cross_sentences[index], plan.beam)
            if gates is not None:
                rows = LayerRows(gates=(gates, index))
            x, weights = layer(
                x,
                source,
                source_padding,
                incremental_state,
                self_attn_mask=self.buffered_future_mask(x) if causal else None,
                self_attn_padding_mask=padding_mask,
                need_attn=index == wanted_layer,
                rows=rows,
            )
            inner_states.append(x)
            if weights is not None:
                attention = self._spread_attention(weights, rows, plan, x, alignment_heads)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = x.transpose(0, 1)  # [R, T, C]
        if self.project_out_dim is not None:
            x = self.project_out_dim(x)
        return x, {"attn": [attention], "inner_states": inner_states}

    def _embed(self, tokens: Tensor, incremental_state: Optional[IncrementalState]) -> Tuple[Tensor, Optional[Tensor]]:
        """Embeds [R, T] tokens (the last one only in a search): [T, R, C] and their padding mask or None."""
        positions = None
        if self.embed_positions is not None:
            positions = self.embed_positions(tokens, incremental_state=incremental_state)
        if incremental_state is not None:
            tokens = tokens[:, -1:]
            positions = None if positions is None else positions[:, -1:]
        x = self.embed_scale * self.embed_tokens(tokens.contiguous())
        if self.quant_noise is not None:
            x = self.quant_noise(x)
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if positions is not None:
            x = x + positions
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        x = self.dropout_module(x).transpose(0, 1)  # [T, R, C]
        padding_mask = tokens.eq(self.padding_idx)
        return x, padding_mask if bool(padding_mask.any()) else None

    def _plan(
        self, encoder_out: Dict[str, list], incremental_state: Optional[IncrementalState], num_rows: int
    ) -> DecoderPlan:
        """Takes the search's plan, or makes one from the decisions in the encoder's output."""
        saved: Any = None
        if incremental_state is not None:
            saved = self.get_incremental_state(incremental_state, "plan")
        if saved:
            return saved["plan"]
        positions = encoder_out["kept_positions"][0] if encoder_out["kept_positions"] else None
        length = encoder_out["source_length"][0]
        plan = DecoderPlan.build(encoder_out["decisions"][0], num_rows, positions, length)
        if incremental_state is not None:
            self.set_incremental_state(incremental_state, "plan", {"plan": plan})  # type: ignore[dict-item]
        return plan

    def _spread_attention(
        self, weights: Tensor, rows: LayerRows, plan: DecoderPlan, x: Tensor, heads: Optional[int]
    ) -> Tensor:
        """Averages [H, K, T, S'] over heads and spreads it over all rows and original positions: [R, T, S]."""
        weights = weights.float().to(x)
        mean = (weights if heads is None else weights[:heads]).mean(dim=0)  # [K, T, S']
        kept = SwitchableDecoderLayer.cross_rows(rows)
        if kept is not None:
            mean = mean.new_zeros(plan.num_rows, mean.size(1), mean.size(2)).index_copy(0, kept, mean)
        if plan.positions is None:
            return mean
        positions = plan.positions.repeat_interleave(plan.beam, dim=0)  # [R, S']
        return restore_positions(mean, positions, plan.source_length)

    def reorder_incremental_state_scripting(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Reorders the caches of a search; each layer's holds the rows that keep it.

        Args:
            incremental_state: the search's caches.
            new_order: LongTensor [R'], the row before of every row after, sentence-major.
        """
        saved: Any = self.get_incremental_state(incremental_state, "plan")
        if not saved:
            return
        old: DecoderPlan = saved["plan"]
        sentence_order = old.sentence_order(new_order)
        removes_sentences = not old.keeps_sentences(sentence_order)
        new = old.reorder(sentence_order) if removes_sentences else old
        for index, layer in enumerate(self.layers):
            before, after = old.attention_rows[index], new.attention_rows[index]
            order = compact_order(before, after, new_order, old.num_rows)
            reorder_cache(layer.self_attn, incremental_state, order)
            if removes_sentences:
                before, after = old.cross_sentences[index], new.cross_sentences[index]
                order = compact_order(before, after, sentence_order, len(old.decisions))
                reorder_cache(layer.encoder_attn, incremental_state, order)
        self.set_incremental_state(incremental_state, "plan", {"plan": new})  # type: ignore[dict-item]

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """As :meth:`reorder_incremental_state_scripting`, for callers of fairseq's older name."""
        self.reorder_incremental_state_scripting(incremental_state, new_order)


def reorder_cache(attention: nn.Module, incremental_state: IncrementalState, order: Tensor) -> None:
    """Selects the rows ``order`` of one attention's cache (none where no row ever ran it)."""
    buffer = attention._get_input_buffer(incremental_state)  # type: ignore[operator]
    if not buffer:
        return
    selected = {key: value if value is None else value.index_select(0, order) for key, value in buffer.items()}
    attention._set_input_buffer(incremental_state, selected)  # type: ignore[operator]
