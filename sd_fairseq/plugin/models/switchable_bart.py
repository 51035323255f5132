"""``--arch switchable_bart``: fairseq's BART that decides per input which sub-layers and source tokens to skip."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from fairseq.file_utils import load_archive_file
from fairseq.models import register_model, register_model_architecture
from fairseq.models.bart.hub_interface import BARTHubInterface
from fairseq.models.bart.model import BARTModel, bart_base_architecture, bart_large_architecture
from omegaconf import OmegaConf, open_dict
from torch import Tensor

from sd_fairseq.cost.path_flops import ModelShape
from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.learning.policy_learner import PolicyLearner, trainable_parameters
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.option_checks import check_workers_agree
from sd_fairseq.plugin.guards.preflight import check_checkpoint
from sd_fairseq.plugin.models.classification import state_of_last_end
from sd_fairseq.plugin.models.conversion import flat_options, switchable_overrides
from sd_fairseq.plugin.models.hub_interface import SwitchableHubInterface
from sd_fairseq.plugin.models.options import (
    add_model_options,
    build_policy,
    check_supported,
    decision_space,
    fill_defaults,
    model_shape,
)
from sd_fairseq.plugin.models.switchable_decoder import SwitchableDecoder
from sd_fairseq.plugin.models.switchable_encoder import PathRequest, SwitchableEncoder
from sd_fairseq.plugin.models.switchable_layers import FUSED_KERNEL_COPIES

logger = logging.getLogger(__name__)
POLICY_KEYS = ("encoder.policy.", "policy_learner.")


@register_model("switchable_bart")
class SwitchableBARTModel(BARTModel):
    """BART with a policy in its encoder; takes plain BART checkpoints.

    Args:
        args: fairseq's transformer configuration with the ``sd_*`` options.
        encoder, decoder: the switchable stacks.
    """

    def __init__(self, args: Any, encoder: SwitchableEncoder, decoder: SwitchableDecoder):
        super().__init__(args, encoder, decoder)
        policy = encoder.policy
        self.policy_learner: Optional[PolicyLearner] = None
        if policy is not None and trainable_parameters(policy):
            policy.reset_parameters()  # type: ignore[operator]  # BART's initialisation has gone over it
            policy.requires_grad_(False)  # moved by the policy learner, not by the backbone's optimizer
            self.policy_learner = PolicyLearner(sum(p.numel() for p in trainable_parameters(policy)))

    @staticmethod
    def add_args(parser) -> None:
        """Adds BART's and the model's own options."""
        BARTModel.add_args(parser)
        add_model_options(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "SwitchableBARTModel":
        """Builds the model for a task; refuses what skipping does not support."""
        with open_dict(args) if OmegaConf.is_config(args) else nullcontext():
            fill_defaults(args)
            if getattr(args, "sd_token_strategies", None) is None:
                args.sd_token_strategies = getattr(getattr(task, "cfg", None), "sd_token_strategies", None)
        if OmegaConf.is_config(args):
            args = flat_options(args)
        check_supported(args)
        check_workers_agree(args)
        model = super().build_model(args, task)
        switches, strategies = model.space.num_switches, len(model.space.token_strategies)
        logger.info("%d switches and %d token strategies, decided by: %s", switches, strategies, args.sd_policy)
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
        if "sd_flops_budget" in kwargs:  # the training's own stands under that name
            kwargs["sd_served_budget"] = kwargs.pop("sd_flops_budget")
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

    @property
    def space(self) -> DecisionSpace:
        """The decision space."""
        return self.encoder.space

    @property
    def shape(self) -> ModelShape:
        """The dimensions that the closed-form costs need."""
        return model_shape(self.args, len(self.decoder.dictionary), self.encoder.policy)

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
        extra["decisions"] = encoder_out["decisions"][0]
        extra["policy_states"] = encoder_out["policy_states"]
        extra["switch_gates"] = encoder_out["switch_gates"]
        if classification_head_name is not None:
            head = self.classification_heads[classification_head_name]
            x = head(x if getattr(head, "reads_every_token", False) else state_of_last_end(x, src_tokens, self.eos))
        return x, extra

    def set_beam_size(self, beam: int) -> None:
        """Lets the hypotheses of a sentence share its encoder row.

        Nothing is stored on the attention modules, so a forward pass after a search is right, which it is not in
        fairseq's BART.
        """
        self.encoder.shares_beam_rows = beam > 1

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
        for key, value in state_dict.items():
            if torch.is_tensor(value) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(f"checkpoint holds values that are not finite (NaN or infinity) in {key}")
        self._check_dictionary(embedding.size(0))
        for layer in range(self.encoder.num_layers):
            for copy in FUSED_KERNEL_COPIES:
                state_dict.pop(f"{prefix}encoder.layers.{layer}.{copy}", None)
        if not hasattr(self.args, "task"):
            self.args.task = "translation"  # BART reads it; hydra-trained checkpoints lack it
        super().upgrade_state_dict_named(state_dict, name)
        self._fill_policy(state_dict, prefix)

    def _check_dictionary(self, found: int) -> None:
        expected = len(self.encoder.dictionary)
        has_mask_row = found == expected + 1 and "<mask>" not in self.encoder.dictionary
        if found != expected and not has_mask_row and getattr(self.args, "task", "") != "multilingual_denoising":
            raise InputError(f"checkpoint was made with a dictionary of {found} symbols, the data's has {expected}")

    def _fill_policy(self, state_dict: Dict[str, Any], prefix: str) -> None:
        own = {k: v for k, v in self.state_dict().items() if k.startswith(POLICY_KEYS)}
        self._drop_another_policy(state_dict, prefix, own)
        missing = [key for key in own if prefix + key not in state_dict]
        for key, value in own.items():
            found = state_dict.get(prefix + key)
            if found is not None and found.shape != value.shape:
                raise InputError(
                    f"checkpoint's policy has {key} of shape {tuple(found.shape)}, this decision space needs "
                    f"{tuple(value.shape)}; give the same --sd-policy, --sd-policy-input, --sd-space and "
                    "--sd-token-strategies"
                )
            anew = key.startswith("policy_learner.") and getattr(self.args, "sd_fresh_learner", False)
            asked = key == "encoder.policy.budget" and getattr(self.args, "sd_served_budget", None) is not None
            if found is None or anew or asked:
                state_dict[prefix + key] = value.clone()
        for key in [k for k in state_dict if k.startswith(tuple(prefix + p for p in POLICY_KEYS))]:
            if key[len(prefix) :] not in own:
                del state_dict[key]  # another kind of policy (random, dense) takes its place
        if any(key.startswith("encoder.policy.") and not key.endswith(".shift") for key in missing):
            logger.info("checkpoint has no policy: starting with a fresh one, every switch open")

    def _drop_another_policy(self, state_dict: Dict[str, Any], prefix: str, own: Iterable[str]) -> None:
        """Leaves out a policy of another kind than the model's, its learner's state too, and says so."""
        found, wanted = stored_policy(key[len(prefix) :] for key in state_dict), stored_policy(own)
        if found and wanted and found != wanted:
            text = "the checkpoint's policy is of kind %s, --sd-policy is %s: it is left out and a fresh one starts"
            logger.warning(text, found, wanted)
            for key in [key for key in state_dict if key.startswith(tuple(prefix + p for p in POLICY_KEYS))]:
                del state_dict[key]

    def max_decoder_positions(self) -> int:
        """Longest target, in tokens."""
        return self.decoder.max_positions()


def stored_policy(keys: Iterable[str]) -> Optional[str]:
    """Tells by the names of a checkpoint's weights which kind of ``--sd-policy`` it holds; None = none that learns."""
    names = {key.split(".")[2] for key in keys if key.startswith("encoder.policy.")}
    return "layerwise" if "networks" in names else "network" if names else None


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
