"""The head that finds an answer's span: two numbers a token, of being its first and its last."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sd_fairseq.cost.path_flops import HeadShape

SPAN_HEAD = "span_head"  # its name in the model and in checkpoints


class SpanHead(nn.Module):
    """A linear layer on the decoder's top states, kept among BART's classification heads.

    BART reads the sizes of every head in a checkpoint from ``dense`` and ``out_proj``. This head's only layer goes by
    both names, so that BART loads it, starts it fresh or drops it as it does with its own.

    Args:
        dim: C of the decoder.
    """

    reads_every_token = True

    def __init__(self, dim: int):
        super().__init__()
        self.out_proj = nn.Linear(dim, 2)
        self.dense = self.out_proj
        nn.init.normal_(self.out_proj.weight, std=0.02)  # as BART's other layers
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, T, 2] of states [B, T, C]."""
        return self.out_proj(x)  # [B, T, 2]


def register_span_head(model: Any) -> None:
    """Gives a model a fresh span head."""
    model.classification_heads[SPAN_HEAD] = SpanHead(model.decoder.output_embed_dim)


def span_head_shape(model: Any) -> HeadShape:
    """Returns the dimensions of a model's span head."""
    layer = model.classification_heads[SPAN_HEAD].out_proj
    return HeadShape((layer.in_features, layer.out_features), every_token=True)
