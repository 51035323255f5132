"""fairseq's BART decoder that follows the encoder's decisions, with caches of the rows that keep each sub-layer."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer.transformer_decoder import TransformerDecoderBase
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from sd_fairseq.plugin.models.decoder_flow import DecoderFlow, IncrementalState
from sd_fairseq.plugin.models.exit_search import search_with_modules
from sd_fairseq.plugin.models.switchable_layers import SwitchableDecoderLayer


class SwitchableDecoder(DecoderFlow, TransformerDecoderBase):
    """A transformer decoder that skips what the decisions in ``encoder_out`` say.

    Args:
        cfg: fairseq's transformer configuration.
        dictionary: fairseq dictionary.
        embed_tokens: embedding of the target.
        skip_keeps_layer_norm: see :class:`SwitchableDecoderLayer`.
        attention_layer: layer (from 0) whose cross-attention is returned by default: the one that always runs.

    Attributes:
        can_leave_early: rules by confidence may decide.
    """

    can_leave_early = True

    def __init__(self, cfg, dictionary, embed_tokens: nn.Embedding, skip_keeps_layer_norm: bool, attention_layer: int):
        self.skip_keeps_layer_norm = skip_keeps_layer_norm
        TransformerDecoderBase.__init__(self, cfg, dictionary, embed_tokens)
        self.attention_layer = attention_layer

    def build_decoder_layer(self, cfg, no_encoder_attn: bool = False) -> nn.Module:
        layer: nn.Module = SwitchableDecoderLayer(cfg, self.skip_keeps_layer_norm)
        if cfg.checkpoint_activations:
            layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
        return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)

    def embed_target(
        self, tokens: Tensor, incremental_state: Optional[IncrementalState], encoder_out: Dict[str, list]
    ) -> Tuple[Tensor, Optional[Tensor]]:
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

    def self_attention_mask(self, x: Tensor, steps: int, causal: bool) -> Optional[Tensor]:
        """Returns fairseq's causal mask [T, T], -inf above the diagonal; in a search None."""
        return self.buffered_future_mask(x) if causal else None

    def finish(self, x: Tensor) -> Tensor:
        """The pre-norm BART's last LayerNorm, and fairseq's projection: [T, R, C] -> [R, T, C]."""
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = x.transpose(0, 1)  # [R, T, C]
        return x if self.project_out_dim is None else self.project_out_dim(x)

    def reorder_cache(self, layer: int, site: str, incremental_state: IncrementalState, order: Tensor) -> None:
        """Selects the rows ``order`` of one attention's cache (none where no row ever ran it)."""
        one = self.layers[layer]
        attention = one.encoder_attn if site == "decoder_cross_attention" else one.self_attn
        buffer = attention._get_input_buffer(incremental_state)
        if buffer:
            selected = {key: value if value is None else value.index_select(0, order) for key, value in buffer.items()}
            attention._set_input_buffer(incremental_state, selected)

    def forward(  # type: ignore[override]
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict[str, list]] = None,
        incremental_state: Optional[IncrementalState] = None,
        features_only: bool = False,
        **more: Any,
    ) -> Tuple[Tensor, Dict[str, list]]:
        """As fairseq's; a step of a search under a rule by confidence has its logits from where its tokens leave."""
        if features_only or not self._leaves_early(incremental_state):
            return super().forward(prev_output_tokens, encoder_out, incremental_state, features_only, **more)
        _, logits = self._step_early(prev_output_tokens, encoder_out, incremental_state)
        return logits.unsqueeze(1), {"attn": [None], "inner_states": []}

    def extract_features(  # type: ignore[override]
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict[str, list]] = None,
        incremental_state: Optional[IncrementalState] = None,
        *more: Any,
        **options: Any,
    ) -> Tuple[Tensor, Dict[str, list]]:
        """As :meth:`DecoderFlow.extract_features`; a search under a rule by confidence returns no attention."""
        if not self._leaves_early(incremental_state):
            return super().extract_features(prev_output_tokens, encoder_out, incremental_state, *more, **options)
        x, _ = self._step_early(prev_output_tokens, encoder_out, incremental_state)
        return self.finish(x.unsqueeze(0)), {"attn": [None], "inner_states": []}

    def _leaves_early(self, incremental_state: Optional[IncrementalState]) -> bool:
        return self.rule.by_confidence and incremental_state is not None

    def _step_early(
        self, tokens: Tensor, encoder_out: Optional[Dict[str, list]], incremental_state: Any
    ) -> Tuple[Tensor, Tensor]:
        """Runs a step of an ``ExitSearch``: states [R, C] and logits [R, V] of the newest of [R, T] tokens."""
        if encoder_out is None:
            raise ValueError("the switchable decoder needs the switchable encoder's output, found None")
        saved: Any = self.get_incremental_state(incremental_state, "exits")
        search = saved["search"] if saved else search_with_modules(self, encoder_out, tokens.size(0))
        if not saved:
            self.set_incremental_state(incremental_state, "exits", {"search": search})  # type: ignore[dict-item]
        x, _ = self.embed_target(tokens, incremental_state, encoder_out)  # [1, R, C]
        return search.step(x.squeeze(0), tokens.size(1) - 1)

    def reorder_incremental_state_scripting(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """As :meth:`DecoderFlow.reorder_incremental_state_scripting`; the caches of early exits, too."""
        saved: Any = self.get_incremental_state(incremental_state, "exits")
        if saved:
            saved["search"].reorder(new_order)
        super().reorder_incremental_state_scripting(incremental_state, new_order)
