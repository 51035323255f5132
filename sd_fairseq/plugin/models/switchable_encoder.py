"""fairseq's BART encoder with the policy inside: decisions after layer 1, a shorter source from layer 2 on."""

from __future__ import annotations

from typing import Any, Optional, Tuple

from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer.transformer_encoder import TransformerEncoderBase
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from sd_fairseq.decision.decider import PATHS, Decider, PathRequest, masked_mean
from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.execution.encoder_flow import EncoderFlow
from sd_fairseq.execution.layer_rows import LayerRows
from sd_fairseq.plugin.models.switchable_layers import SwitchableEncoderLayer

__all__ = ["PATHS", "Decider", "PathRequest", "SwitchableEncoder", "masked_mean"]


class SwitchableEncoder(EncoderFlow, TransformerEncoderBase):
    """A transformer encoder that decides and skips.

    Args:
        cfg: fairseq's transformer configuration with the ``sd_*`` options.
        dictionary: fairseq dictionary.
        embed_tokens: embedding of the source.
        space: the decision space.
        policy: a policy network, a :class:`~sd_fairseq.decision.given_policies.GivenPolicy`, or None (always dense).
        skip_keeps_layer_norm: see :class:`SwitchableEncoderLayer`.
    """

    def __init__(
        self,
        cfg,
        dictionary,
        embed_tokens: nn.Embedding,
        space: DecisionSpace,
        policy: Optional[nn.Module],
        skip_keeps_layer_norm: bool,
    ):
        self.skip_keeps_layer_norm = skip_keeps_layer_norm
        TransformerEncoderBase.__init__(self, cfg, dictionary, embed_tokens)
        self.space = space
        self.policy = policy
        self.shares_beam_rows = False

    def build_encoder_layer(self, cfg) -> nn.Module:
        layer: nn.Module = SwitchableEncoderLayer(cfg, self.skip_keeps_layer_norm)
        if cfg.checkpoint_activations:
            layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
        return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)

    def embed_source(
        self, src_tokens: Tensor, token_embeddings: Optional[Tensor], padding_mask: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """As BART's: embedding and learned positions, 0 where padding stands."""
        x, encoder_embedding = self.forward_embedding(src_tokens, token_embeddings)
        if padding_mask is not None:
            x = x * (1 - padding_mask.unsqueeze(-1).type_as(x))
        return x.transpose(0, 1), encoder_embedding  # [S, B, C]

    def run_layer(self, index: int, x: Tensor, tokens: Any, rows: LayerRows) -> Tensor:
        """Runs a layer; ``tokens`` is the padding mask [B, S'] or None."""
        return self.layers[index](x, encoder_padding_mask=tokens, rows=rows)

    def finish(self, x: Tensor) -> Tensor:
        """The pre-norm BART's last LayerNorm."""
        return x if self.layer_norm is None else self.layer_norm(x)
