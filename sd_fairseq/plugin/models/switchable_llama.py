"""``--arch switchable_llama``: LLaMA (Table 16) that decides per prompt which sub-layers and prompt tokens to skip.

The task is ``switchable_translation``: the source is the prompt, the target the answer. A layer's switch counts for
prompt and answer alike (``tied``).
"""

from __future__ import annotations

import argparse
from typing import Any, Dict, List, Optional, Tuple

from fairseq.models import FairseqEncoderDecoderModel, register_model, register_model_architecture
from torch import Tensor, nn

from sd_fairseq.cost.prompt_flops import PromptShape
from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.families.llama import SIZES, LlamaShape
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.option_checks import check_workers_agree
from sd_fairseq.plugin.models.options import add_model_options, build_policy, decision_space, fill_defaults, model_shape
from sd_fairseq.plugin.models.prompt_stacks import AnswerDecoder, PromptEncoder
from sd_fairseq.plugin.models.switchable_model import SwitchableModel, prepare_options


@register_model("switchable_llama")
class SwitchableLlamaModel(SwitchableModel, FairseqEncoderDecoderModel):
    """A LLaMA with a policy that reads its prompt.

    Args:
        args: the options, ours with ``sd_``.
        encoder, decoder: who reads the prompt, and who answers.
    """

    def __init__(self, args: Any, encoder: PromptEncoder, decoder: AnswerDecoder):
        FairseqEncoderDecoderModel.__init__(self, encoder, decoder)
        self.args = args
        for module in decoder.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self.add_policy_learner()

    @staticmethod
    def add_args(parser) -> None:
        """Adds the sizes and the options of every switchable model; defaults are the architecture's."""
        add = parser.add_argument
        add("--decoder-embed-dim", type=int, metavar="C", help="embedding dimension")
        add("--decoder-ffn-embed-dim", type=int, metavar="F", help="feed-forward dimension")
        add("--decoder-layers", type=int, metavar="L", help="layers")
        add("--decoder-attention-heads", type=int, metavar="H", help="heads of the queries")
        add("--key-heads", type=int, metavar="H", help="heads of keys and values, a divisor of the queries'")
        add("--attention-head-dim", type=int, metavar="D", help="size of a head")
        add("--rotary-theta", type=float, metavar="T", help="base of the rotary positions")
        add("--layer-norm-epsilon", type=float, metavar="E", help="added to the mean square in the norms")
        add("--share-decoder-input-output-embed", action="store_true", help="the head is the embedding")
        add("--added-symbols", type=int, metavar="N", help="symbols at the dictionary's end without a row of weights")
        add("--dropout", type=float, metavar="P", help="dropout probability of attention weights and sub-layers")
        add("--max-source-positions", type=int, metavar="N", help="longest prompt, in tokens")
        add("--max-target-positions", type=int, metavar="N", help="longest answer, in tokens")
        add_model_options(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "SwitchableLlamaModel":
        """Builds the model for a task.

        Raises:
            InputError: an option that the model does not go with.
        """
        args = prepare_options(args, task)
        switchable_llama_architecture(args)
        check_llama(args, task)
        shape, space = llama_shape(args), decision_space(args, tied=True)
        embed_tokens = nn.Embedding(len(task.target_dictionary) - args.added_symbols, shape.dim)
        decoder = AnswerDecoder(shape, task.target_dictionary, embed_tokens, args.max_target_positions)
        encoder = PromptEncoder(shape, decoder, space, build_policy(args, space), args.max_source_positions)
        model = cls(args, encoder, decoder)
        model.log_space()
        return model

    @property
    def shape(self) -> PromptShape:
        """The dimensions that the closed-form costs need."""
        sizes = llama_shape(self.args)
        shape = model_shape(self.args, self.decoder.embed_tokens.num_embeddings, self.encoder.policy)
        inner, keys = sizes.heads * sizes.head_dim, sizes.key_heads * sizes.head_dim
        return PromptShape(**{**vars(shape), "attention_dim": inner, "key_dim": keys, "ffn_products": 3})

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
        """Teacher forcing of the answer along one path per example.

        Args:
            src_tokens: LongTensor [B, S], prompts with their end-of-sentence symbol.
            src_lengths: unused, as in fairseq.
            prev_output_tokens: LongTensor [B, T], beginning with the end-of-sentence symbol.
            features_only: no head.
            return_all_hiddens: keep the prompt's hidden states, too.
            path: which path to take.
            decision_log: the batch's decisions are appended to it.

        Returns:
            Logits [B, T, V] (or features) and a dictionary with ``decisions``, ``policy_states``, ``switch_gates`` (of
            a gated path, else empty), ``attn`` [None] and ``inner_states``.
        """
        encoder_out = self.encoder(
            src_tokens, return_all_hiddens=return_all_hiddens, path=path, decision_log=decision_log
        )
        x, extra = self.decoder(prev_output_tokens, encoder_out=encoder_out, features_only=features_only)
        self.add_decisions(extra, encoder_out)
        return x, extra

    def register_classification_head(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Refuses what the model does not have.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"switchable_llama has no head {name!r}: it answers in text, with --task switchable_translation"
        )

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """Gives a checkpoint without a policy a fresh one.

        Raises:
            InputError: not a LLaMA's checkpoint, another dictionary, a value that is not finite, or a policy of another
                decision space.
        """
        prefix = name + "." if name else ""
        embedding = state_dict.get(prefix + "decoder.embed_tokens.weight")
        if embedding is None or prefix + "encoder.embed_tokens.weight" in state_dict:
            found = ", ".join(sorted(state_dict)[:3])
            raise InputError(f"checkpoint is not one of a switchable_llama: found {found}, ...")
        expected = self.decoder.embed_tokens.num_embeddings
        if embedding.size(0) != expected:
            raise InputError(f"checkpoint has {embedding.size(0)} rows of embeddings, the data's dictionary {expected}")
        self.check_finite(state_dict)
        super().upgrade_state_dict_named(state_dict, name)
        self.fill_policy(state_dict, prefix)

    def max_decoder_positions(self) -> int:
        """Longest answer, in tokens."""
        return self.decoder.max_positions()


def check_llama(args: Any, task: Any) -> None:
    """Refuses what the model does not go with.

    Raises:
        InputError: naming the option.
    """
    check_workers_agree(args)
    if args.sd_skip_keeps_layer_norm:
        raise InputError("--sd-skip-keeps-layer-norm is for BART, whose sub-layers end with their norm")
    if args.sd_cross_attention_apart:
        raise InputError("--sd-cross-attention-apart: switchable_llama has no cross-attention")
    if args.sd_first_decoder_layer != 1 or args.sd_always_run_attention != -1:
        raise InputError(
            "--sd-first-decoder-layer and --sd-always-run-attention: in switchable_llama prompt and answer share their "
            "switches; use --sd-first-encoder-layer"
        )
    if args.decoder_attention_heads % args.key_heads:
        raise InputError(f"--key-heads {args.key_heads} is no divisor of {args.decoder_attention_heads} heads")
    if task.source_dictionary != task.target_dictionary:
        raise InputError("switchable_llama has one embedding for source and target: give both the same dictionary")


def llama_shape(args: Any) -> LlamaShape:
    """Collects the sizes among the options."""
    return LlamaShape(
        dim=args.decoder_embed_dim,
        heads=args.decoder_attention_heads,
        key_heads=args.key_heads,
        head_dim=args.attention_head_dim,
        ffn_dim=args.decoder_ffn_embed_dim,
        layers=args.decoder_layers,
        theta=args.rotary_theta,
        tied_head=args.share_decoder_input_output_embed,
        eps=args.layer_norm_epsilon,
        dropout=args.dropout,
    )


def fill_sizes(args: Any, size: str) -> None:
    """Gives every option that ``args`` lacks the size's value."""
    fill_defaults(args)
    shape = SIZES[size]
    values = {
        "decoder_embed_dim": shape.dim,
        "decoder_ffn_embed_dim": shape.ffn_dim,
        "decoder_layers": shape.layers,
        "decoder_attention_heads": shape.heads,
        "key_heads": shape.key_heads,
        "attention_head_dim": shape.head_dim,
        "rotary_theta": shape.theta,
        "layer_norm_epsilon": shape.eps,
        "share_decoder_input_output_embed": shape.tied_head,
        "added_symbols": 0,
        "dropout": 0.0,
        "max_source_positions": 2048,
        "max_target_positions": 2048,
    }
    for name, value in values.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    args.encoder_embed_dim, args.encoder_ffn_embed_dim = args.decoder_embed_dim, args.decoder_ffn_embed_dim
    args.encoder_layers = args.decoder_layers


@register_model_architecture("switchable_llama", "switchable_llama")
def switchable_llama_architecture(args: argparse.Namespace) -> None:
    """LLaMA 7B: 32 layers, C 4096, 32 heads of 128, F 11008."""
    fill_sizes(args, "7b")


@register_model_architecture("switchable_llama", "switchable_llama_135m")
def switchable_llama_135m_architecture(args: argparse.Namespace) -> None:
    """SmolLM2 135M: 30 layers, C 576, 9 heads of 64 over 3, F 1536, the head tied to the embedding."""
    fill_sizes(args, "135m")


@register_model_architecture("switchable_llama", "switchable_llama_tiny")
def switchable_llama_tiny_architecture(args: argparse.Namespace) -> None:
    """4 layers, C 64, 4 heads of 16 over 2, F 128: for tests."""
    fill_sizes(args, "tiny")
