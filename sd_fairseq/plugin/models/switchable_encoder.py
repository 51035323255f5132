"""fairseq's BART encoder with the policy inside: decisions after layer 1, a shorter source from layer 2 on.

The policy runs here, and not in the model's ``forward``, because fairseq's generators call the encoder directly.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer.transformer_encoder import TransformerEncoderBase
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.given_policies import GivenPolicy
from sd_fairseq.decision.noise import Noise
from sd_fairseq.decision.policy import PolicyDistribution, policy_input, split_logits
from sd_fairseq.decision.token_strategies import kept_token_mask
from sd_fairseq.execution.sublayers import find_kept_rows
from sd_fairseq.execution.tokens import shorten_source
from sd_fairseq.plugin.models.switchable_layers import LayerRows, SwitchableEncoderLayer

PATHS = ("mode", "sample", "sharpened", "dense")


class PathRequest(NamedTuple):
    """Which path a forward pass takes.

    Args:
        kind: ``mode`` (deployed), ``sample`` (bounded policy), ``sharpened`` (sample close to the mode) or ``dense``.
        bound: a of :meth:`PolicyDistribution.bounded`, for ``sample``.
        temperature: of :meth:`PolicyDistribution.sharpened`.
        noise: what ``sample`` and ``sharpened`` draw with; None = from torch's generator.
        decisions: a path given by the caller; ``kind`` is ignored then.
        gated: True = every sub-layer runs and is multiplied by its decision (0 or 1), so that the loss has a gradient
            with respect to the decisions; for training only, it saves nothing.
    """

    kind: str = "mode"
    bound: float = 1.0
    temperature: float = 1.0
    noise: Optional[Noise] = None
    decisions: Optional[Decisions] = None
    gated: bool = False


class SwitchableEncoder(TransformerEncoderBase):
    """A transformer encoder that decides and skips.

    Args:
        cfg: fairseq's transformer configuration with the ``sd_*`` options.
        dictionary: fairseq dictionary.
        embed_tokens: embedding of the source.
        space: the decision space.
        policy: a policy network, a :class:`GivenPolicy`, or None (always dense).
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
        super().__init__(cfg, dictionary, embed_tokens)
        self.space = space
        self.policy = policy
        self.shares_beam_rows = False

    def build_encoder_layer(self, cfg) -> nn.Module:
        layer: nn.Module = SwitchableEncoderLayer(cfg, self.skip_keeps_layer_norm)
        if cfg.checkpoint_activations:
            layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
        return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        return_all_hiddens: bool = False,
        token_embeddings: Optional[Tensor] = None,
        path: PathRequest = PathRequest(),
        decision_log: Optional[List[Decisions]] = None,
    ) -> Dict[str, list]:
        """Encodes a batch along one path per example.

        Args:
            src_tokens: LongTensor [B, S].
            src_lengths: unused, as in fairseq.
            return_all_hiddens: also return the L + 1 hidden states ([S or S', B, C]).
            token_embeddings: precomputed embeddings [B, S, C].
            path: which path to take.
            decision_log: the batch's decisions are appended to it (for the trace of a generator that hides them).

        Returns:
            fairseq's dictionary of lists, plus ``decisions`` [Decisions], ``policy_states`` (list of detached
            [B, width]), ``kept_positions`` ([LongTensor [B, S']] or [] when no token was dropped), ``source_length``
            [S], and of a gated path ``gates`` [site -> [B, L]] and ``switch_gates`` [float32 [B, switches], a leaf].
        """
        padding_mask = src_tokens.eq(self.padding_idx)  # [B, S]
        has_padding = bool(padding_mask.any())
        x, encoder_embedding = self.forward_embedding(src_tokens, token_embeddings)
        x = x * (1 - padding_mask.unsqueeze(-1).type_as(x)) if has_padding else x
        x = x.transpose(0, 1)  # [S, B, C]
        states = [x] if return_all_hiddens else []
        x = self.layers[0](x, encoder_padding_mask=padding_mask if has_padding else None)
        if return_all_hiddens:
            states.append(x)
        decider = Decider(self.space, self.policy, path, src_tokens, padding_mask)
        decider.decide(1, x)
        if path.gated:
            decider.open_gates()

        x, kept_mask, kept_positions = self._drop_tokens(x, padding_mask, decider.token_choice())
        has_padding = bool(kept_mask.any()) if kept_positions else has_padding
        x = self._run_upper_layers(x, kept_mask if has_padding else None, decider, states, return_all_hiddens)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if decision_log is not None:
            decision_log.append(decider.decisions())
        return {
            "encoder_out": [x],  # [S', B, C]
            "encoder_padding_mask": [kept_mask],  # [B, S']
            "encoder_embedding": [encoder_embedding],  # [B, S, C]
            "encoder_states": states,
            "fc_results": [],
            "src_tokens": [],
            "src_lengths": [(~padding_mask).sum(dim=1, dtype=torch.int32).reshape(-1, 1).contiguous()],  # [B, 1]
            "decisions": [decider.decisions()],
            "policy_states": decider.states,
            "kept_positions": kept_positions,
            "source_length": [src_tokens.size(1)],
            "gates": [] if decider.gates is None else [decider.gates],
            "switch_gates": [] if decider.switch_gates is None else [decider.switch_gates],
        }

    def _drop_tokens(self, x: Tensor, padding_mask: Tensor, choice: Tensor) -> Tuple[Tensor, Tensor, List[Tensor]]:
        """Shortens the source by each example's token strategy.

        Args:
            x: [S, B, C].
            padding_mask: BoolTensor [B, S], True = padding.
            choice: LongTensor [B], index of the strategy.

        Returns:
            [S', B, C], its padding mask [B, S'], and [LongTensor [B, S']] of the kept positions; all as it was, and
            [], where no example drops anything.
        """
        if not bool((choice != 0).any()):
            return x, padding_mask, []
        source = shorten_source(x, kept_token_mask(padding_mask, choice, self.space.token_strategies))
        return source.x, source.padding_mask, [source.positions]

    def _run_upper_layers(
        self, x: Tensor, mask: Optional[Tensor], decider: "Decider", states: List[Tensor], return_all_hiddens: bool
    ) -> Tensor:
        """Runs layers 2..L along the decided path: [S', B, C] -> [S', B, C]; appends the hidden states if wanted."""
        padding_mask = x.new_zeros(x.size(1), x.size(0), dtype=torch.bool) if mask is None else mask
        for index in range(1, len(self.layers)):
            if index > 1:
                decider.decide(index, x, padding_mask)
            x = self.layers[index](x, encoder_padding_mask=mask, rows=decider.encoder_rows(index))
            if return_all_hiddens:
                states.append(x)
        if len(self.layers) > 1:
            decider.decide(len(self.layers), x, padding_mask)
        return x

    def forward_torchscript(self, net_input: Dict[str, Tensor]) -> Dict[str, list]:
        """What fairseq's generators call; always the deployed path."""
        return self.forward(**{key: value for key, value in net_input.items() if key != "prev_output_tokens"})

    def reorder_encoder_out(self, encoder_out: Dict[str, list], new_order: Tensor) -> Dict[str, list]:
        """Reorders sentences, decisions included; fairseq's own would drop every key it does not know.

        While a beam search shares one row among the hypotheses of a sentence (see
        :meth:`SwitchableBARTModel.set_beam_size`) nothing is copied: the decoder keeps what it needs in its
        incremental state from the first step on.
        """
        if self.shares_beam_rows:
            return encoder_out
        reordered = super().reorder_encoder_out({**encoder_out}, new_order)
        reordered["fc_results"] = []
        reordered["decisions"] = [value.index_select(new_order) for value in encoder_out["decisions"]]
        for key in ("policy_states", "kept_positions"):
            reordered[key] = [value.index_select(0, new_order) for value in encoder_out[key]]
        reordered["source_length"] = encoder_out["source_length"]
        return reordered


class Decider:
    """Collects one forward pass's decisions, in one stage after layer 1 or layer by layer.

    Args:
        space: the decision space.
        policy: see :class:`SwitchableEncoder`.
        path: which path to take.
        src_tokens: LongTensor [B, S].
        padding_mask: BoolTensor [B, S], True = padding.
    """

    def __init__(
        self,
        space: DecisionSpace,
        policy: Optional[nn.Module],
        path: PathRequest,
        src_tokens: Tensor,
        padding_mask: Tensor,
    ):
        if path.kind not in PATHS:
            raise ValueError(f"path {path.kind!r} is not one of {', '.join(PATHS)}")
        self.space, self.policy, self.path, self.padding_mask = space, policy, path, padding_mask
        self.states: List[Tensor] = []
        self._logits: Optional[Tensor] = None
        self._noise: Optional[Noise] = None
        self._rows: Optional[Tuple[list, list]] = None
        self._decisions = path.decisions
        self.switch_gates: Optional[Tensor] = None
        self.gates: Optional[Dict[str, Tensor]] = None
        batch_size, device = src_tokens.size(0), src_tokens.device
        if self._decisions is None and (path.kind == "dense" or policy is None):
            self._decisions = space.keep_all(batch_size, device)
        if self._decisions is None and isinstance(policy, GivenPolicy):
            self._decisions = policy.decide(src_tokens, padding_mask)
        elif path.kind in ("sample", "sharpened"):
            self._noise = path.noise or Noise.draw(batch_size, space, device)

    def decide(self, layer: int, x: Tensor, padding_mask: Optional[Tensor] = None) -> None:
        """Asks the policy, if encoder layer ``layer`` (from 1) is one of its stages.

        Args:
            layer: the layer whose output ``x`` [S, B, C] is.
            padding_mask: BoolTensor [B, S] that fits ``x``; None = the source's own.
        """
        stages = getattr(self.policy, "stages", ())
        if layer not in stages:
            return
        state = masked_mean(x, self.padding_mask if padding_mask is None else padding_mask)
        state = policy_input(self.policy.inputs, state, (~self.padding_mask).sum(dim=1))  # type: ignore[union-attr, arg-type]
        if hasattr(self.policy, "with_budget"):
            state = self.policy.with_budget(state)
        self.states.append(state)
        if self.path.decisions is not None or self.path.kind == "dense":
            return
        with torch.no_grad():
            logits = self.policy.stage_logits(layer, state)
        if len(stages) > 1:
            wanted = torch.tensor(self.policy.stage_of_output(), device=logits.device) == layer
            logits = logits if self._logits is None else torch.where(wanted, logits, self._logits)
        self._logits = logits
        self._decisions = self._choose(split_logits(self.space, logits))
        self._rows = None

    def _choose(self, distribution: PolicyDistribution) -> Decisions:
        if self.path.kind == "sample":
            return distribution.bounded(self.path.bound).sample(self._noise)
        if self.path.kind == "sharpened":
            return distribution.sharpened(self.path.temperature).sample(self._noise)
        return distribution.mode()

    def decisions(self) -> Decisions:
        """Returns what has been decided so far."""
        assert self._decisions is not None, "the first stage decides after layer 1"
        return self._decisions

    def token_choice(self) -> Tensor:
        """Returns LongTensor [B]."""
        return self.decisions().token_choice

    def open_gates(self) -> None:
        """Makes gates of the decisions, whose gradient can be asked for."""
        keep = self.space.to_keep(self.decisions())
        self.switch_gates = keep.float().requires_grad_(torch.is_grad_enabled())
        self.gates = self.space.spread(self.switch_gates)

    def encoder_rows(self, layer: int) -> LayerRows:
        """Returns the kept rows of encoder layer ``layer`` (from 0), or its gates."""
        if self.gates is not None:
            return LayerRows(gates=(self.gates, layer))
        if self._rows is None:
            decisions = self.decisions()
            self._rows = find_kept_rows(decisions.encoder_attention), find_kept_rows(decisions.encoder_ffn)
        return LayerRows(attention=self._rows[0][layer], ffn=self._rows[1][layer])


def masked_mean(x: Tensor, padding_mask: Tensor) -> Tensor:
    """Averages [S, B, C] over the non-padding positions; detached float32 [B, C], the policy's input."""
    real = (~padding_mask).t().unsqueeze(-1)  # [S, B, 1]
    total = (x.detach().float() * real).sum(dim=0)
    return total / real.sum(dim=0).clamp(min=1)
