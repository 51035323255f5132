"""fairseq's post-norm transformer layers, cut into sub-layers that run for the rows that keep them (section 3.1)."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

from fairseq.models.transformer import TransformerConfig
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from sd_fairseq.execution.layer_rows import LayerRows
from sd_fairseq.execution.sublayers import KeptRows, select_rows

# Parameters that stock fairseq 0.12.2 adds to every encoder layer for a fused inference kernel: copies of others.
FUSED_KERNEL_COPIES = tuple(
    f"{name}_{kind}" for name in ("in_proj", "out_proj", "fc1", "fc2") for kind in ("weight", "bias")
)


class FeedForwardSublayer:
    """The feed-forward sub-layer, alike in both stacks."""

    def run_ffn(self, x: Tensor, _: KeptRows = None) -> Tensor:
        """Feed-forward with its residual and LayerNorm: [T, K, C] -> [T, K, C]."""
        residual = x
        x = self.final_layer_norm(x) if self.normalize_before else x  # type: ignore[attr-defined]
        x = self.activation_dropout_module(self.activation_fn(self.fc1(x)))  # type: ignore[attr-defined]
        x = self.residual_connection(self.dropout_module(self.fc2(x)), residual)  # type: ignore[attr-defined]
        return x if self.normalize_before else self.final_layer_norm(x)  # type: ignore[attr-defined]


class SwitchableEncoderLayer(FeedForwardSublayer, TransformerEncoderLayerBase):
    """An encoder layer whose two sub-layers run for the rows that keep them.

    Args:
        cfg: fairseq's transformer configuration.
        skip_keeps_layer_norm: True = a skipped sub-layer still applies its LayerNorm.
    """

    def __init__(self, cfg: TransformerConfig, skip_keeps_layer_norm: bool = False):
        super().__init__(cfg)
        self.skip_keeps_layer_norm = skip_keeps_layer_norm
        for name in FUSED_KERNEL_COPIES:
            if name in self._parameters:
                delattr(self, name)

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)  # 0.12.2's own would recreate the fused kernel's copies

    def forward(
        self,
        x: Tensor,
        encoder_padding_mask: Optional[Tensor],
        attn_mask: Optional[Tensor] = None,
        rows: LayerRows = LayerRows(),
    ) -> Tensor:
        """Runs the layer.

        Args:
            x: [S, B, C].
            encoder_padding_mask: BoolTensor [B, S], True = padding, or None.
            attn_mask: must be None (fairseq's signature).
            rows: who keeps what.

        Returns:
            [S, B, C].
        """
        attention_norm = self.self_attn_layer_norm if self.skip_keeps_layer_norm else None
        ffn_norm = self.final_layer_norm if self.skip_keeps_layer_norm else None

        def attention(part: Tensor, kept: KeptRows) -> Tensor:
            return self.run_attention(part, select_rows(encoder_padding_mask, kept))

        x = rows.run("encoder_attention", attention, x, rows.attention, attention_norm)
        return rows.run("encoder_ffn", self.run_ffn, x, rows.ffn, ffn_norm)

    def run_attention(self, x: Tensor, padding_mask: Optional[Tensor]) -> Tensor:
        """Self-attention with its residual and LayerNorm: [S, K, C] -> [S, K, C]."""
        residual = x
        x = self.self_attn_layer_norm(x) if self.normalize_before else x
        x, _ = self.self_attn(query=x, key=x, value=x, key_padding_mask=padding_mask, need_weights=False)
        x = self.residual_connection(self.dropout_module(x), residual)
        return x if self.normalize_before else self.self_attn_layer_norm(x)


class SwitchableDecoderLayer(FeedForwardSublayer, TransformerDecoderLayerBase):
    """A decoder layer whose sub-layers run for the rows that keep them, with caches of those rows only.

    Args:
        cfg: fairseq's transformer configuration.
        skip_keeps_layer_norm: True = a skipped sub-layer still applies its LayerNorm.
    """

    def __init__(self, cfg: TransformerConfig, skip_keeps_layer_norm: bool = False):
        super().__init__(cfg)
        self.skip_keeps_layer_norm = skip_keeps_layer_norm

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        encoder_out: Optional[Tensor] = None,
        encoder_padding_mask: Optional[Tensor] = None,
        incremental_state: Optional[Dict[str, Dict[str, Optional[Tensor]]]] = None,
        self_attn_mask: Optional[Tensor] = None,
        self_attn_padding_mask: Optional[Tensor] = None,
        need_attn: bool = False,
        rows: LayerRows = LayerRows(),
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Runs the layer.

        Args:
            x: [T, R, C]; R = sentences * beam rows.
            encoder_out: [S', B, C], one row a sentence.
            encoder_padding_mask: BoolTensor [B, S'], True = padding, or None.
            incremental_state: caches of a search, or None in teacher forcing.
            self_attn_mask: [T, T] causal mask (-inf above the diagonal), or None.
            self_attn_padding_mask: BoolTensor [R, T], True = padding, or None.
            need_attn: return cross-attention weights.
            rows: who keeps what.

        Returns:
            Output [T, R, C]; weights [H, K, T, S'] of the rows that keep cross-attention, or None.
        """
        norms = (self.self_attn_layer_norm, self.encoder_attn_layer_norm, self.final_layer_norm)
        attention_norm, cross_norm, ffn_norm = norms if self.skip_keeps_layer_norm else (None, None, None)
        weights: Optional[Tensor] = None

        def attention(part: Tensor, kept: KeptRows) -> Tensor:
            padding = select_rows(self_attn_padding_mask, kept)
            return self.run_attention(part, padding, self_attn_mask, incremental_state)

        def cross(part: Tensor, _: KeptRows) -> Tensor:
            nonlocal weights
            output, weights = self.run_cross_attention(
                part, encoder_out, encoder_padding_mask, incremental_state, need_attn, rows
            )
            return output

        x = rows.run("decoder_attention", attention, x, rows.attention, attention_norm)
        x = rows.run("decoder_cross_attention", cross, x, rows.cross_rows, cross_norm)
        x = rows.run("decoder_ffn", self.run_ffn, x, rows.ffn, ffn_norm)
        return x, weights

    def run_attention(
        self, x: Tensor, padding_mask: Optional[Tensor], mask: Optional[Tensor], incremental_state: Optional[dict]
    ) -> Tensor:
        """Self-attention with its residual and LayerNorm: [T, K, C] -> [T, K, C]."""
        residual = x
        x = self.self_attn_layer_norm(x) if self.normalize_before else x
        x, _ = self.self_attn(
            query=x,
            key=x,
            value=x,
            key_padding_mask=padding_mask,
            incremental_state=incremental_state,
            need_weights=False,
            attn_mask=mask,
        )
        x = self.residual_connection(self.dropout_module(x), residual)
        return x if self.normalize_before else self.self_attn_layer_norm(x)

    def run_cross_attention(
        self,
        x: Tensor,
        encoder_out: Optional[Tensor],
        padding_mask: Optional[Tensor],
        incremental_state: Optional[dict],
        need_attn: bool,
        rows: LayerRows,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Cross-attention with its residual and LayerNorm: [T, K, C] -> [T, K, C] and weights [H, K, T, S'].

        The hypotheses of a sentence share its keys and values: in a search (T = 1) they stand side by side as query
        positions of one sentence, [beam, K / beam, C]. Nothing about the beam is stored on the module, which is where
        fairseq's BART goes wrong after a beam search.
        """
        residual = x
        x = self.encoder_attn_layer_norm(x) if self.normalize_before else x
        steps, kept, dim = x.size()
        beam = rows.beam
        query = (
            x if beam == 1 else x.view(steps, kept // beam, beam, dim).transpose(1, 2).reshape(-1, kept // beam, dim)
        )
        cached = incremental_state is not None and bool(self.encoder_attn._get_input_buffer(incremental_state))
        key = None if cached else select_rows(encoder_out, rows.cross, dim=1)
        x, weights = self.encoder_attn(
            query=query,
            key=key,
            value=key,
            key_padding_mask=None if cached else select_rows(padding_mask, rows.cross),
            incremental_state=incremental_state,
            static_kv=True,
            need_weights=need_attn,
            need_head_weights=need_attn,
        )
        if beam > 1:
            x = x.view(steps, beam, kept // beam, dim).transpose(1, 2).reshape(steps, kept, dim)
            if weights is not None:  # [H, K / beam, T * beam, S'] -> [H, K, T, S']
                weights = weights.view(weights.size(0), kept // beam, steps, beam, -1).transpose(2, 3)
                weights = weights.reshape(weights.size(0), kept, steps, -1)
        x = self.residual_connection(self.dropout_module(x), residual)
        return (x if self.normalize_before else self.encoder_attn_layer_norm(x)), weights
