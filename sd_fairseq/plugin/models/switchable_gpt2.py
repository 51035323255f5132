"""``--arch switchable_gpt2``: GPT-2 (Table 6) and what fairseq trains as ``transformer_lm_gpt2_*``; tiny is for tests.

Prompt and answer share one table of positions, so the longest source and the longest target must fit into it together.
"""

from __future__ import annotations

from typing import Any, Dict

import torch.nn.functional as F
from fairseq.models import register_model
from torch import Tensor, nn

from sd_fairseq.families.gpt2 import FEED_FORWARDS, SIZES, GPT2Shape
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models import prompt_model
from sd_fairseq.plugin.models.prompt_model import PromptModel
from sd_fairseq.plugin.models.prompt_stacks import AnswerDecoder
from sd_fairseq.plugin.models.size_options import SizeOption, collect_sizes, register_sizes

TOKENS_APART = 2  # a source ends with a symbol that is not run, its last token is the answer's first input
ANSWER_SHARE = 8  # Choice: by default an eighth of the positions is the answer's: 128 of 1,024


class GPT2Decoder(AnswerDecoder):
    """Embeds positions besides.

    Args:
        shape: the model's sizes.
        dictionary, embed_tokens, max_positions: as :class:`AnswerDecoder`'s.
    """

    def __init__(self, shape: GPT2Shape, dictionary: Any, embed_tokens: nn.Embedding, max_positions: int):
        super().__init__(shape, dictionary, embed_tokens, max_positions)
        self.embed_positions = nn.Embedding(shape.positions, shape.dim)
        self.embed_scale = shape.embed_scale

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See :class:`AnswerDecoder`."""
        known = tokens.masked_fill(tokens >= self.embed_tokens.num_embeddings, 0)
        embedded = self.embed_scale * self.embed_tokens(known) + self.embed_positions(positions)  # [R, T, C]
        return F.dropout(embedded, self.dropout, self.training)


@register_model("switchable_gpt2")
class SwitchableGPT2Model(PromptModel):
    """A GPT-2 with a policy that reads its prompt; arguments as :class:`PromptModel`'s."""

    name, sizes, decoder_type = "switchable_gpt2", SIZES, GPT2Decoder
    table = (
        *prompt_model.SIZES,
        SizeOption("positions", "positions", int, "positions of prompt and answer together, a row of weights each"),
        SizeOption("feed_forward", "feed_forward", FEED_FORWARDS, "activation; gelu-tanh is GPT-2's"),
        SizeOption("embed_scale", "embed_scale", float, "factor of the token embeddings; 1, in a transformer_lm C^1/2"),
    )

    @classmethod
    def defaults(cls, args: Any, shape: GPT2Shape) -> Dict[str, Any]:
        """Returns option -> default; the longest source and target share the positions."""
        places = getattr(args, "positions", None) or shape.positions
        target = getattr(args, "max_target_positions", None) or places // ANSWER_SHARE
        return {"added_symbols": 0, "max_target_positions": target, "max_source_positions": places - target}

    @classmethod
    def shape_of(cls, args: Any) -> GPT2Shape:
        """Collects the sizes among the options."""
        heads, dim = args.decoder_attention_heads, args.decoder_embed_dim
        return GPT2Shape(key_heads=heads, head_dim=dim // heads, **collect_sizes(args, cls.table))

    @classmethod
    def check(cls, args: Any, task: Any) -> None:
        """As every decoder-only model's; also sizes that do not fit each other (InputError)."""
        super().check(args, task)
        if args.decoder_embed_dim % args.decoder_attention_heads:
            raise InputError(
                f"--decoder-embed-dim {args.decoder_embed_dim} is no multiple of {args.decoder_attention_heads} heads"
            )
        if args.feed_forward not in FEED_FORWARDS:
            raise InputError(f"--feed-forward {args.feed_forward!r}: expected one of {', '.join(FEED_FORWARDS)}")
        if args.max_source_positions + args.max_target_positions > args.positions + TOKENS_APART:
            raise InputError(
                f"--max-source-positions {args.max_source_positions} and --max-target-positions "
                f"{args.max_target_positions} together exceed the model's {args.positions} positions"
            )

    def initialise(self) -> None:
        """Draws GPT-2's initial weights: what a sub-layer adds is the smaller the more of them there are."""
        super().initialise()
        for layer in self.decoder.layers:
            for linear in (layer.out_proj, layer.ffn.fc2):
                nn.init.normal_(linear.weight, std=0.02 * (2 * len(self.decoder.layers)) ** -0.5)


register_sizes("switchable_gpt2", SIZES, "small", SwitchableGPT2Model.fill)
