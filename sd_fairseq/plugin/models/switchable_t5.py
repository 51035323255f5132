"""``--arch switchable_t5``: T5 (Table 6) that decides per input which sub-layers and source tokens to skip.

Sizes: T5 v1.1's and Flan's ``small`` (the architecture without a suffix), ``base`` and ``large``; 1.0's ``1_0_small``
and ``1_0_base``, which is the paper's; ``tiny`` for tests. ``sd-import`` makes their checkpoints.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Container

from fairseq.models import register_model
from torch import nn

from sd_fairseq.cost.path_flops import ModelShape
from sd_fairseq.families.attention import Attention
from sd_fairseq.families.feed_forward import FeedForward
from sd_fairseq.families.positions import RelativeBias
from sd_fairseq.families.t5 import FEED_FORWARDS, SIZES, T5Shape
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.options import build_policy, decision_space, model_shape
from sd_fairseq.plugin.models.size_options import LONGEST, SizeOption, collect_sizes, fill_sizes, register_sizes
from sd_fairseq.plugin.models.switchable_model import prepare_options
from sd_fairseq.plugin.models.t5_stacks import SwitchableT5Decoder, SwitchableT5Encoder
from sd_fairseq.plugin.models.text_model import TextModel

HALF = "float16 ends at 65,504, and the residual stream of a trained T5 goes beyond; use bfloat16 or float32"
OTHERS = {"dropout": 0.1, "max_source_positions": 1024, "max_target_positions": 1024}


@register_model("switchable_t5")
class SwitchableT5Model(TextModel):
    """T5 with a policy in its encoder; arguments as :class:`TextModel`'s."""

    name, embedding = "switchable_t5", "encoder.embed_tokens.weight"
    table = (
        SizeOption("encoder_embed_dim", "dim", int, "embedding dimension of both stacks"),
        SizeOption("encoder_ffn_embed_dim", "ffn_dim", int, "feed-forward dimension of both stacks"),
        SizeOption("encoder_layers", "encoder_layers", int, "encoder layers"),
        SizeOption("decoder_layers", "decoder_layers", int, "decoder layers"),
        SizeOption("encoder_attention_heads", "heads", int, "attention heads of both stacks"),
        SizeOption("attention_head_dim", "head_dim", int, "size of a head; heads * size need not be C"),
        SizeOption("feed_forward", "feed_forward", FEED_FORWARDS, "gated-gelu (T5 v1.1) or relu (1.0)"),
        SizeOption(
            "share_decoder_input_output_embed",
            "tied_head",
            bool,
            "the head is the embedding, its input scaled by C^-1/2 (1.0)",
        ),
        SizeOption("relative_buckets", "buckets", int, "buckets of the relative positions"),
        SizeOption("relative_distance", "farthest", int, "distance from which on all share the last bucket"),
        *LONGEST,
    )

    def initialise(self) -> None:
        """Draws the initial weights."""
        self.apply(initialise)

    @classmethod
    def fill(cls, args: Any, shape: T5Shape) -> None:
        """Gives every option that ``args`` lacks the value of an architecture."""
        fill_sizes(args, cls.table, shape, OTHERS)
        args.decoder_embed_dim, args.decoder_ffn_embed_dim = args.encoder_embed_dim, args.encoder_ffn_embed_dim

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "SwitchableT5Model":
        """Builds the model for a task.

        Raises:
            InputError: an option that T5 does not go with.
        """
        args = prepare_options(args, task)
        cls.fill(args, SIZES["small"])
        cls.check(args, task)
        dictionary, shape, space = task.source_dictionary, cls.shape_of(args), decision_space(args)
        embed_tokens = nn.Embedding(len(dictionary), shape.dim)  # the padding row is T5's beginning: no padding_idx
        policy = build_policy(args, space)
        encoder = SwitchableT5Encoder(shape, dictionary, embed_tokens, space, policy, args.max_source_positions)
        layer = args.sd_always_run_attention
        attention_layer = (args.decoder_layers if layer == -1 else layer) - 1
        about = embed_tokens, attention_layer, args.max_target_positions
        model = cls(args, encoder, SwitchableT5Decoder(shape, task.target_dictionary, *about))
        model.log_space()
        return model

    @classmethod
    def check(cls, args: Any, task: Any) -> None:
        """As every text model's; also float16 and an unknown feed-forward (InputError)."""
        super().check(args, task)
        if getattr(args, "fp16", False) or getattr(args, "memory_efficient_fp16", False):
            raise InputError(f"switchable_t5 does not support --fp16: {HALF}")
        if args.feed_forward not in FEED_FORWARDS:
            raise InputError(f"--feed-forward {args.feed_forward!r}: expected one of {', '.join(FEED_FORWARDS)}")

    @classmethod
    def shape_of(cls, args: Any) -> T5Shape:
        """Collects the sizes among the options."""
        return T5Shape(**collect_sizes(args, cls.table))

    def owns(self, names: Container[str]) -> bool:
        """Tells by the names of a checkpoint's weights whether it is one of this model."""
        return "encoder.relative_bias.embedding.weight" in names

    @property
    def shape(self) -> ModelShape:
        """The dimensions that the closed-form costs need."""
        sizes = self.shape_of(self.args)
        shape = model_shape(self.args, len(self.decoder.dictionary), self.encoder.policy)
        products = 3 if sizes.feed_forward.startswith("gated-") else 2
        return dataclasses.replace(shape, attention_dim=sizes.attention_dim, ffn_products=products)

    def half(self) -> "SwitchableT5Model":
        """Refuses what would overflow.

        Raises:
            InputError: always.
        """
        raise InputError(f"switchable_t5 does not support --fp16: {HALF}")


def initialise(module: nn.Module) -> None:
    """Draws T5's initial weights: scores and states keep their size without a scaling of the scores."""
    if isinstance(module, Attention):
        dim, inner = module.q_proj.in_features, module.q_proj.out_features
        nn.init.normal_(module.q_proj.weight, std=(dim * module.head_dim) ** -0.5)
        nn.init.normal_(module.k_proj.weight, std=dim**-0.5)
        nn.init.normal_(module.v_proj.weight, std=dim**-0.5)
        nn.init.normal_(module.out_proj.weight, std=inner**-0.5)
    elif isinstance(module, FeedForward):
        for linear in (module.fc1, module.gate, module.fc2):
            if linear is not None:
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    elif isinstance(module, RelativeBias):
        nn.init.normal_(module.embedding.weight, std=0.1)
    elif isinstance(module, SwitchableT5Decoder):
        nn.init.normal_(module.embed_tokens.weight, std=1.0)
        if module.output_projection is not None:  # Choice: small, so that a fresh model begins near the uniform loss
            nn.init.normal_(module.output_projection.weight, std=module.output_projection.in_features**-0.5)


register_sizes("switchable_t5", SIZES, "small", SwitchableT5Model.fill)
