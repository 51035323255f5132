"""What the models have in common that answer in text and that fairseq does not have."""

from __future__ import annotations

from typing import Any, ClassVar, Container, Dict, List, Optional, Sequence, Tuple

from fairseq.models import FairseqEncoderDecoderModel
from torch import Tensor

from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.option_checks import check_workers_agree
from sd_fairseq.plugin.models.options import add_model_options
from sd_fairseq.plugin.models.size_options import SizeOption, add_size_options
from sd_fairseq.plugin.models.switchable_model import SwitchableModel


class TextModel(SwitchableModel, FairseqEncoderDecoderModel):
    """A switchable encoder-decoder model; a family says its name, its sizes and what its checkpoints look like.

    Args:
        args: the options, ours with ``sd_``.
        encoder, decoder: the switchable stacks.
    """

    name: ClassVar[str]  # of the model among fairseq's
    table: ClassVar[Sequence[SizeOption]]
    embedding: ClassVar[str]  # name of its weights

    def __init__(self, args: Any, encoder: Any, decoder: Any):
        FairseqEncoderDecoderModel.__init__(self, encoder, decoder)
        self.args = args
        self.initialise()
        self.add_policy_learner()
        self.add_rule()

    def initialise(self) -> None:
        """Draws the initial weights."""
        raise NotImplementedError

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Adds the sizes and the options of every switchable model; defaults are the architecture's."""
        add_size_options(parser, cls.table)
        add_model_options(parser)

    @classmethod
    def check(cls, args: Any, task: Any) -> None:
        """Refuses what the model does not go with.

        Raises:
            InputError: naming the option.
        """
        check_workers_agree(args)
        if args.sd_skip_keeps_layer_norm:
            raise InputError(
                "--sd-skip-keeps-layer-norm is for BART, whose sub-layers end with their norm; "
                f"those of {cls.name} begin with it"
            )
        if task.source_dictionary != task.target_dictionary:
            raise InputError(f"{cls.name} has one embedding for source and target: give both the same dictionary")

    def owns(self, names: Container[str]) -> bool:
        """Tells by the names of a checkpoint's weights whether it is one of this model."""
        raise NotImplementedError

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
            src_tokens: LongTensor [B, S], with the end-of-sentence symbol.
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
        """Refuses what the model does not have.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.name} has no head {name!r}: it answers in text, with --task switchable_translation")

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """Gives a checkpoint without a policy a fresh one.

        Raises:
            InputError: another model's checkpoint, another dictionary, a value that is not finite, or a policy of
                another decision space.
        """
        prefix = name + "." if name else ""
        names = {key[len(prefix) :] for key in state_dict if key.startswith(prefix)}
        if self.embedding not in names or not self.owns(names):
            found = ", ".join(sorted(state_dict)[:3])
            raise InputError(f"checkpoint is not one of a {self.name}: found {found}, ...")
        added = getattr(self.args, "added_symbols", 0)
        found, expected = state_dict[prefix + self.embedding].size(0) + added, len(self.decoder.dictionary)
        if found != expected:
            raise InputError(f"checkpoint was made with a dictionary of {found} symbols, the data's has {expected}")
        self.check_finite(state_dict)
        super().upgrade_state_dict_named(state_dict, name)
        self.fill_policy(state_dict, prefix)

    def max_decoder_positions(self) -> int:
        """Longest target, in tokens."""
        return self.decoder.max_positions()
