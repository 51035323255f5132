"""``--arch switchable_t5``: T5 (Table 6) that decides per input which sub-layers and source tokens to skip."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Tuple

from fairseq.models import FairseqEncoderDecoderModel, register_model, register_model_architecture
from torch import Tensor, nn

from sd_fairseq.cost.path_flops import ModelShape
from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.families.attention import Attention
from sd_fairseq.families.feed_forward import FeedForward
from sd_fairseq.families.positions import RelativeBias
from sd_fairseq.families.t5 import FEED_FORWARDS, SIZES, T5Shape
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.option_checks import check_workers_agree
from sd_fairseq.plugin.models.options import add_model_options, build_policy, decision_space, fill_defaults, model_shape
from sd_fairseq.plugin.models.switchable_model import SwitchableModel, prepare_options
from sd_fairseq.plugin.models.t5_stacks import SwitchableT5Decoder, SwitchableT5Encoder

HALF = "float16 ends at 65,504, and the residual stream of a trained T5 goes beyond; use bfloat16 or float32"


@register_model("switchable_t5")
class SwitchableT5Model(SwitchableModel, FairseqEncoderDecoderModel):
    """T5 with a policy in its encoder; ``sd-import`` makes its checkpoints.

    Args:
        args: the options, ours with ``sd_``.
        encoder, decoder: the switchable stacks.
    """

    def __init__(self, args: Any, encoder: SwitchableT5Encoder, decoder: SwitchableT5Decoder):
        FairseqEncoderDecoderModel.__init__(self, encoder, decoder)
        self.args = args
        self.apply(initialise)
        self.add_policy_learner()

    @staticmethod
    def add_args(parser) -> None:
        """Adds the sizes and the options of every switchable model; defaults are the architecture's."""
        add = parser.add_argument
        add("--encoder-embed-dim", type=int, metavar="C", help="embedding dimension of both stacks")
        add("--encoder-ffn-embed-dim", type=int, metavar="F", help="feed-forward dimension of both stacks")
        add("--encoder-layers", type=int, metavar="L", help="encoder layers")
        add("--decoder-layers", type=int, metavar="L", help="decoder layers")
        add("--encoder-attention-heads", type=int, metavar="H", help="attention heads of both stacks")
        add("--attention-head-dim", type=int, metavar="D", help="size of a head; heads * size need not be C")
        add("--feed-forward", choices=FEED_FORWARDS, help="gated-gelu (T5 v1.1) or relu (1.0)")
        add(
            "--share-decoder-input-output-embed",
            action="store_true",
            help="the head is the embedding, its input scaled by C^-1/2 (1.0)",
        )
        add("--dropout", type=float, metavar="P", help="dropout probability, everywhere where T5 has it")
        add("--relative-buckets", type=int, metavar="N", help="buckets of the relative positions")
        add("--relative-distance", type=int, metavar="N", help="distance from which on all share the last bucket")
        add("--max-source-positions", type=int, metavar="N", help="longest source, in tokens; T5 itself has no limit")
        add("--max-target-positions", type=int, metavar="N", help="longest target, in tokens")
        add_model_options(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "SwitchableT5Model":
        """Builds the model for a task.

        Raises:
            InputError: an option that T5 does not go with.
        """
        args = prepare_options(args, task)
        switchable_t5_architecture(args)
        check_t5(args, task)
        dictionary, shape, space = task.source_dictionary, t5_shape(args), decision_space(args)
        embed_tokens = nn.Embedding(len(dictionary), shape.dim)  # the padding row is T5's beginning: no padding_idx
        policy = build_policy(args, space)
        encoder = SwitchableT5Encoder(shape, dictionary, embed_tokens, space, policy, args.max_source_positions)
        layer = args.sd_always_run_attention
        attention_layer = (args.decoder_layers if layer == -1 else layer) - 1
        about = embed_tokens, attention_layer, args.max_target_positions
        model = cls(args, encoder, SwitchableT5Decoder(shape, task.target_dictionary, *about))
        model.log_space()
        return model

    @property
    def shape(self) -> ModelShape:
        """The dimensions that the closed-form costs need."""
        sizes = t5_shape(self.args)
        shape = model_shape(self.args, len(self.decoder.dictionary), self.encoder.policy)
        products = 3 if sizes.feed_forward.startswith("gated-") else 2
        return dataclasses.replace(shape, attention_dim=sizes.attention_dim, ffn_products=products)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor],
        prev_output_tokens: Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        path: PathRequest = PathRequest(),
        decision_log: Optional[List[Decisions]] = None,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Teacher forcing along one path per example.

        Args:
            src_tokens: LongTensor [B, S].
            src_lengths: unused, as in fairseq.
            prev_output_tokens: LongTensor [B, T], beginning with the end-of-sentence symbol.
            features_only: no head.
            return_all_hiddens: keep the encoder's hidden states, too.
            path: which path to take.
            decision_log: the batch's decisions are appended to it.

        Returns:
            Logits [B, T, V] (or features) and a dictionary with ``decisions``, ``policy_states``, ``switch_gates`` (of
            a gated path, else empty), ``attn`` and ``inner_states``.
        """
        encoder_out = self.encoder(
            src_tokens, return_all_hiddens=return_all_hiddens, path=path, decision_log=decision_log
        )
        x, extra = self.decoder(prev_output_tokens, encoder_out=encoder_out, features_only=features_only)
        self.add_decisions(extra, encoder_out)
        return x, extra

    def register_classification_head(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Refuses what T5 does not have.

        Raises:
            InputError: always.
        """
        raise InputError(f"switchable_t5 has no head {name!r}: it answers in text, with --task switchable_translation")

    def half(self) -> "SwitchableT5Model":
        """Refuses what would overflow.

        Raises:
            InputError: always.
        """
        raise InputError(f"switchable_t5 does not support --fp16: {HALF}")

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """Gives a checkpoint without a policy a fresh one.

        Raises:
            InputError: not a T5 checkpoint, another dictionary, a value that is not finite, or a policy of another
                decision space.
        """
        prefix = name + "." if name else ""
        embedding = state_dict.get(prefix + "encoder.embed_tokens.weight")
        if embedding is None or prefix + "encoder.relative_bias.embedding.weight" not in state_dict:
            found = ", ".join(sorted(state_dict)[:3])
            raise InputError(f"checkpoint is not one of a switchable_t5: found {found}, ...")
        expected = len(self.encoder.dictionary)
        if embedding.size(0) != expected:
            raise InputError(
                f"checkpoint was made with a dictionary of {embedding.size(0)} symbols, the data's has {expected}"
            )
        self.check_finite(state_dict)
        super().upgrade_state_dict_named(state_dict, name)
        self.fill_policy(state_dict, prefix)

    def max_decoder_positions(self) -> int:
        """Longest target, in tokens."""
        return self.decoder.max_positions()


def check_t5(args: Any, task: Any) -> None:
    """Refuses what T5 does not go with.

    Raises:
        InputError: naming the option.
    """
    check_workers_agree(args)
    if getattr(args, "fp16", False) or getattr(args, "memory_efficient_fp16", False):
        raise InputError(f"switchable_t5 does not support --fp16: {HALF}")
    if args.sd_skip_keeps_layer_norm:
        raise InputError(
            "--sd-skip-keeps-layer-norm is for BART, whose sub-layers end with their norm; T5's begin with it"
        )
    if args.feed_forward not in FEED_FORWARDS:
        raise InputError(f"--feed-forward {args.feed_forward!r}: expected one of {', '.join(FEED_FORWARDS)}")
    source, target = task.source_dictionary, task.target_dictionary
    if source != target:
        raise InputError("switchable_t5 has one embedding for source and target: give both the same dictionary")


def t5_shape(args: Any) -> T5Shape:
    """Collects the sizes among the options."""
    return T5Shape(
        dim=args.encoder_embed_dim,
        heads=args.encoder_attention_heads,
        head_dim=args.attention_head_dim,
        ffn_dim=args.encoder_ffn_embed_dim,
        encoder_layers=args.encoder_layers,
        decoder_layers=args.decoder_layers,
        feed_forward=args.feed_forward,
        tied_head=args.share_decoder_input_output_embed,
        dropout=args.dropout,
        buckets=args.relative_buckets,
        farthest=args.relative_distance,
    )


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


def fill_sizes(args: Any, size: str) -> None:
    """Gives every option that ``args`` lacks the size's value; option -> value, as fairseq's architectures do it."""
    fill_defaults(args)
    shape = SIZES[size]
    values = {
        "encoder_embed_dim": shape.dim,
        "encoder_ffn_embed_dim": shape.ffn_dim,
        "encoder_layers": shape.encoder_layers,
        "decoder_layers": shape.decoder_layers,
        "encoder_attention_heads": shape.heads,
        "attention_head_dim": shape.head_dim,
        "feed_forward": shape.feed_forward,
        "share_decoder_input_output_embed": shape.tied_head,
        "dropout": 0.1,
        "relative_buckets": shape.buckets,
        "relative_distance": shape.farthest,
        "max_source_positions": 1024,
        "max_target_positions": 1024,
    }
    for name, value in values.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    args.decoder_embed_dim, args.decoder_ffn_embed_dim = args.encoder_embed_dim, args.encoder_ffn_embed_dim


@register_model_architecture("switchable_t5", "switchable_t5")
def switchable_t5_architecture(args: Any) -> None:
    """T5 v1.1 small, Flan-T5 small: 8 + 8 layers, C 512, 6 heads of 64, F 1024 with a gate."""
    fill_sizes(args, "small")


@register_model_architecture("switchable_t5", "switchable_t5_base")
def switchable_t5_base_architecture(args: Any) -> None:
    """T5 v1.1 base: 12 + 12 layers, C 768, F 2048 with a gate."""
    fill_sizes(args, "base")


@register_model_architecture("switchable_t5", "switchable_t5_large")
def switchable_t5_large_architecture(args: Any) -> None:
    """T5 v1.1 large: 24 + 24 layers, C 1024, F 2816 with a gate."""
    fill_sizes(args, "large")


@register_model_architecture("switchable_t5", "switchable_t5_1_0_small")
def switchable_t5_1_0_small_architecture(args: Any) -> None:
    """T5 1.0 small: 6 + 6 layers, C 512, F 2048, ReLU, the head tied to the embedding."""
    fill_sizes(args, "1_0_small")


@register_model_architecture("switchable_t5", "switchable_t5_1_0_base")
def switchable_t5_1_0_base_architecture(args: Any) -> None:
    """T5 1.0 base, the paper's: 12 + 12 layers, C 768, F 3072, ReLU, the head tied to the embedding."""
    fill_sizes(args, "1_0_base")


@register_model_architecture("switchable_t5", "switchable_t5_tiny")
def switchable_t5_tiny_architecture(args: Any) -> None:
    """4 + 4 layers, C 64, 3 heads of 16, F 128 with a gate: for tests."""
    fill_sizes(args, "tiny")
