"""``--arch switchable_bart``: fairseq's BART that decides per input which sub-layers and source tokens to skip."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Tuple

from fairseq.file_utils import load_archive_file
from fairseq.models import register_model, register_model_architecture
from fairseq.models.bart.hub_interface import BARTHubInterface
from fairseq.models.bart.model import BARTModel, bart_base_architecture, bart_large_architecture
from torch import Tensor

from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.option_checks import check_workers_agree
from sd_fairseq.plugin.guards.preflight import check_checkpoint
from sd_fairseq.plugin.models.classification import state_of_last_end
from sd_fairseq.plugin.models.conversion import switchable_overrides
from sd_fairseq.plugin.models.hub_interface import SwitchableHubInterface
from sd_fairseq.plugin.models.options import (
    add_model_options,
    build_policy,
    check_supported,
    decision_space,
    fill_defaults,
)
from sd_fairseq.plugin.models.switchable_decoder import SwitchableDecoder
from sd_fairseq.plugin.models.switchable_encoder import PathRequest, SwitchableEncoder
from sd_fairseq.plugin.models.switchable_layers import FUSED_KERNEL_COPIES
from sd_fairseq.plugin.models.switchable_model import SwitchableModel, prepare_options


@register_model("switchable_bart")
class SwitchableBARTModel(SwitchableModel, BARTModel):
    """BART with a policy in its encoder; takes plain BART checkpoints.

    Args:
        args: fairseq's transformer configuration with the ``sd_*`` options.
        encoder, decoder: the switchable stacks.
    """

    def __init__(self, args: Any, encoder: SwitchableEncoder, decoder: SwitchableDecoder):
        BARTModel.__init__(self, args, encoder, decoder)
        self.add_policy_learner()
        self.add_rule()

    @staticmethod
    def add_args(parser) -> None:
        """Adds BART's and the model's own options."""
        BARTModel.add_args(parser)
        add_model_options(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "SwitchableBARTModel":
        """Builds the model for a task; refuses what skipping does not support."""
        args = prepare_options(args, task)
        check_supported(args)
        check_workers_agree(args)
        model = super().build_model(args, task)
        model.log_space()
        return model

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str,
        checkpoint_file: str = "model.pt",
        data_name_or_path: str = ".",
        bpe: str = "gpt2",
        **kwargs: Any,
    ) -> BARTHubInterface:
        """As BART's, also for plain BART checkpoints, whose policy starts fresh with every switch open.

        Args:
            model_name_or_path: folder (or archive) of the checkpoint.
            checkpoint_file: file in it.
            data_name_or_path: folder of the dictionaries; starting with ".", relative to the first.
            bpe: as fairseq's.
            kwargs: options to override, such as ``sd_policy="dense"``; of a policy for a range of budgets also
                ``sd_flops_budget``.

        Raises:
            InputError: a checkpoint that cannot be loaded, or of another kind of model.
        """
        folder = load_archive_file(model_name_or_path)
        path = os.path.join(str(folder or model_name_or_path), checkpoint_file)
        check_checkpoint(path, "checkpoint")
        overrides = {**switchable_overrides(path), **kwargs}
        hub = super().from_pretrained(str(folder), checkpoint_file, data_name_or_path, bpe, **overrides)
        if not isinstance(hub.model, cls):
            raise InputError(f"checkpoint {path}: holds a {type(hub.model).__name__}, expected a BART")
        return SwitchableHubInterface(hub.cfg, hub.task, hub.model)

    @classmethod
    def build_encoder(cls, args: Any, src_dict: Any, embed_tokens: Any) -> SwitchableEncoder:
        """Builds the encoder with the policy inside."""
        space = decision_space(args)
        policy = build_policy(args, space)
        return SwitchableEncoder(args, src_dict, embed_tokens, space, policy, args.sd_skip_keeps_layer_norm)

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Any, embed_tokens: Any) -> SwitchableDecoder:
        """Builds the decoder."""
        layer = args.sd_always_run_attention
        attention_layer = (args.decoder_layers if layer == -1 else layer) - 1
        return SwitchableDecoder(args, tgt_dict, embed_tokens, args.sd_skip_keeps_layer_norm, attention_layer)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        features_only: bool = False,
        classification_head_name: Optional[str] = None,
        token_embeddings: Optional[Tensor] = None,
        return_all_hiddens: bool = True,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
        path: PathRequest = PathRequest(),
        decision_log: Optional[List[Decisions]] = None,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Teacher forcing along one path per example; arguments as BART's, plus ``path`` and the encoder's log.

        Returns:
            Logits [B, T, V] (or features, or a classification head's output) and a dictionary with ``decisions``,
            ``policy_states``, ``switch_gates`` (of a gated path, else empty) and fairseq's own entries.
        """
        encoder_out = self.encoder(
            src_tokens,
            src_lengths=src_lengths,
            token_embeddings=token_embeddings,
            return_all_hiddens=return_all_hiddens,
            path=path,
            decision_log=decision_log,
        )
        x, extra = self.decoder(
            prev_output_tokens,
            encoder_out=encoder_out,
            features_only=features_only or classification_head_name is not None,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
            src_lengths=src_lengths,
            return_all_hiddens=return_all_hiddens,
        )
        self.add_decisions(extra, encoder_out)
        if classification_head_name is not None:
            head = self.classification_heads[classification_head_name]
            x = head(x if getattr(head, "reads_every_token", False) else state_of_last_end(x, src_tokens, self.eos))
        return x, extra

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """Takes plain BART checkpoints, 0.12.2's duplicate keys and hydra-trained ones.

        Raises:
            InputError: not a BART checkpoint, another dictionary, a value that is not finite, or a policy of another
                decision space.
        """
        prefix = name + "." if name else ""
        embedding = state_dict.get(prefix + "encoder.embed_tokens.weight")
        if embedding is None:
            found = ", ".join(sorted(state_dict)[:3])
            raise InputError(f"checkpoint is not an encoder-decoder BART: found {found}, ...")
        self.check_finite(state_dict)
        self._check_dictionary(embedding.size(0))
        for layer in range(self.encoder.num_layers):
            for copy in FUSED_KERNEL_COPIES:
                state_dict.pop(f"{prefix}encoder.layers.{layer}.{copy}", None)
        if not hasattr(self.args, "task"):
            self.args.task = "translation"  # BART reads it; hydra-trained checkpoints lack it
        super().upgrade_state_dict_named(state_dict, name)
        self.fill_policy(state_dict, prefix)

    def _check_dictionary(self, found: int) -> None:
        expected = len(self.encoder.dictionary)
        has_mask_row = found == expected + 1 and "<mask>" not in self.encoder.dictionary
        if found != expected and not has_mask_row and getattr(self.args, "task", "") != "multilingual_denoising":
            raise InputError(f"checkpoint was made with a dictionary of {found} symbols, the data's has {expected}")

    def max_decoder_positions(self) -> int:
        """Longest target, in tokens."""
        return self.decoder.max_positions()


@register_model_architecture("switchable_bart", "switchable_bart")
def switchable_bart_architecture(args: Any) -> None:
    """BART-large: 12 + 12 layers, C 1024, F 4096."""
    fill_defaults(args)
    bart_large_architecture(args)


@register_model_architecture("switchable_bart", "switchable_bart_large")
def switchable_bart_large_architecture(args: Any) -> None:
    """The same under BART's own naming."""
    switchable_bart_architecture(args)


@register_model_architecture("switchable_bart", "switchable_bart_base")
def switchable_bart_base_architecture(args: Any) -> None:
    """BART-base: 6 + 6 layers, C 768, F 3072."""
    fill_defaults(args)
    bart_base_architecture(args)


@register_model_architecture("switchable_bart", "switchable_bart_tiny")
def switchable_bart_tiny_architecture(args: Any) -> None:
    """4 + 4 layers, C 128, F 512: trains on two CPU cores."""
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 128)
    args.encoder_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", 512)
    args.encoder_layers = getattr(args, "encoder_layers", 4)
    args.encoder_attention_heads = getattr(args, "encoder_attention_heads", 4)
    args.decoder_layers = getattr(args, "decoder_layers", 4)
    args.decoder_attention_heads = getattr(args, "decoder_attention_heads", 4)
    switchable_bart_architecture(args)
