"""Decoder-only models (LLaMA, GPT-2) as prompt -> answer: they decide per prompt which sub-layers and tokens to skip.

The task is ``switchable_translation``: the source is the prompt, the target the answer. A layer's switch counts for
prompt and answer alike (``tied``).
"""

from __future__ import annotations

from typing import Any, ClassVar, Container, Dict, Mapping, Type

from torch import nn

from sd_fairseq.cost.prompt_flops import PromptShape
from sd_fairseq.families.prompt_layer import DecoderShape
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.options import build_policy, decision_space, model_shape
from sd_fairseq.plugin.models.prompt_stacks import AnswerDecoder, PromptEncoder
from sd_fairseq.plugin.models.size_options import LONGEST, SizeOption, collect_sizes, fill_sizes
from sd_fairseq.plugin.models.switchable_model import prepare_options
from sd_fairseq.plugin.models.text_model import TextModel

SIZES = (
    SizeOption("decoder_embed_dim", "dim", int, "embedding dimension"),
    SizeOption("decoder_ffn_embed_dim", "ffn_dim", int, "feed-forward dimension"),
    SizeOption("decoder_layers", "layers", int, "layers"),
    SizeOption("decoder_attention_heads", "heads", int, "heads of the queries"),
    SizeOption("layer_norm_epsilon", "eps", float, "added to the variance in the norms"),
    SizeOption("share_decoder_input_output_embed", "tied_head", bool, "the head is the embedding"),
    SizeOption("added_symbols", "", int, "symbols at the dictionary's end without a row of weights"),
    *LONGEST,
)


class PromptModel(TextModel):
    """A decoder-only model with a policy that reads its prompt; a family says what it is made of.

    Args:
        args: the options, ours with ``sd_``.
        encoder, decoder: who reads the prompt, and who answers.
    """

    embedding = "decoder.embed_tokens.weight"
    sizes: ClassVar[Mapping[str, DecoderShape]]
    decoder_type: ClassVar[Type[AnswerDecoder]] = AnswerDecoder

    @classmethod
    def defaults(cls, args: Any, shape: DecoderShape) -> Dict[str, Any]:
        """Returns option -> default of what is none of a shape's sizes."""
        return {"added_symbols": 0, "max_source_positions": 2048, "max_target_positions": 2048}

    @classmethod
    def fill(cls, args: Any, shape: DecoderShape) -> None:
        """Gives every option that ``args`` lacks the value of an architecture."""
        fill_sizes(args, cls.table, shape, cls.defaults(args, shape))
        args.encoder_embed_dim, args.encoder_ffn_embed_dim = args.decoder_embed_dim, args.decoder_ffn_embed_dim
        args.encoder_layers = args.decoder_layers

    @classmethod
    def shape_of(cls, args: Any) -> DecoderShape:
        """Collects the sizes among the options."""
        return type(next(iter(cls.sizes.values())))(**collect_sizes(args, cls.table))

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "PromptModel":
        """Builds the model for a task.

        Raises:
            InputError: an option that the model does not go with.
        """
        args = prepare_options(args, task)
        cls.fill(args, next(iter(cls.sizes.values())))
        cls.check(args, task)
        shape, space = cls.shape_of(args), decision_space(args, tied=True)
        embed_tokens = nn.Embedding(len(task.target_dictionary) - args.added_symbols, shape.dim)
        decoder = cls.decoder_type(shape, task.target_dictionary, embed_tokens, args.max_target_positions)
        encoder = PromptEncoder(shape, decoder, space, build_policy(args, space), args.max_source_positions)
        model = cls(args, encoder, decoder)
        model.log_space()
        return model

    @classmethod
    def check(cls, args: Any, task: Any) -> None:
        """Refuses what the model does not go with.

        Raises:
            InputError: naming the option.
        """
        super().check(args, task)
        if args.sd_cross_attention_apart:
            raise InputError(f"--sd-cross-attention-apart: {cls.name} has no cross-attention")
        if args.sd_first_decoder_layer != 1 or args.sd_always_run_attention != -1:
            raise InputError(
                f"--sd-first-decoder-layer and --sd-always-run-attention: in {cls.name} prompt and answer share their "
                "switches; use --sd-first-encoder-layer"
            )

    def owns(self, names: Container[str]) -> bool:
        """Tells by the names of a checkpoint's weights whether it is one of this model."""
        learned = "decoder.embed_positions.weight" in names
        return "encoder.embed_tokens.weight" not in names and learned == hasattr(self.decoder, "embed_positions")

    def initialise(self) -> None:
        """Draws the initial weights."""
        for module in self.decoder.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def shape(self) -> PromptShape:
        """The dimensions that the closed-form costs need."""
        sizes = self.shape_of(self.args)
        shape = model_shape(self.args, self.decoder.embed_tokens.num_embeddings, self.encoder.policy)
        more = {
            "attention_dim": sizes.heads * sizes.head_dim,
            "key_dim": sizes.key_heads * sizes.head_dim,
            "ffn_products": sizes.ffn_products,
        }
        return PromptShape(**{**vars(shape), **more})
