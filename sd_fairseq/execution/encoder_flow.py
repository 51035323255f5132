"""The flow of every switchable encoder: layer 1, decide, drop tokens, the other layers along the decided path.

A family says how it embeds, what its layers need to know about the tokens that are present, and how it ends. The policy
runs here, and not in the model's ``forward``, because fairseq's generators call the encoder directly.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from sd_fairseq.decision.decider import Decider, PathRequest
from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.token_strategies import kept_token_mask
from sd_fairseq.execution.layer_rows import EncoderRows, LayerRows
from sd_fairseq.execution.tokens import shorten_source

BY_ROWS = ("encoder_padding_mask", "encoder_embedding", "src_tokens", "src_lengths", "policy_states", "kept_positions")
BY_COLUMNS = ("encoder_out", "encoder_states")  # [S, B, C]


class EncoderFlow:
    """Put before a family's encoder, a module with ``layers`` and ``padding_idx``.

    Attributes:
        space: the decision space.
        policy: a policy network, a :class:`~sd_fairseq.decision.given_policies.GivenPolicy`, or None (always dense).
        shares_beam_rows: the hypotheses of a sentence share its row, so reordering copies nothing.
    """

    layers: Any
    padding_idx: int
    space: DecisionSpace
    policy: Any
    shares_beam_rows = False

    def choose_tokens(self, src_tokens: Tensor) -> Tensor:
        """Returns the tokens that the encoder runs; a prompt leaves its last one to the answer."""
        return src_tokens

    def embed_source(
        self, src_tokens: Tensor, token_embeddings: Optional[Tensor], padding_mask: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Returns the first layer's input [S, B, C] and the embeddings [B, S, C]; mask None = no padding."""
        raise NotImplementedError

    def describe_tokens(self, x: Tensor, padding_mask: Optional[Tensor], positions: Optional[Tensor]) -> Any:
        """Returns what the layers must know about the tokens that are present.

        Args:
            x: [S', B, C].
            padding_mask: BoolTensor [B, S'], True = padding; None = no padding.
            positions: LongTensor [B, S'], where each token stood in the source; None = where it stands.
        """
        return padding_mask

    def run_layer(self, index: int, x: Tensor, tokens: Any, rows: LayerRows) -> Tensor:
        """Runs layer ``index`` (from 0): [S', B, C] -> [S', B, C]."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """What follows the last layer: [S', B, C] -> [S', B, C]."""
        return x

    def view_for_policy(self, x: Tensor) -> Tensor:
        """What a policy reads the mean of: [S', B, C] -> [S', B, C]."""
        return x

    def more_outputs(self, src_tokens: Tensor, first: Any, rest: Any, rows: EncoderRows) -> Dict[str, list]:
        """Returns what the family's decoder needs besides; ``first``, ``rest``: of :meth:`describe_tokens`."""
        return {}

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
            [S], ``decision_log`` ([the log] or []), and of a gated path ``gates`` [site -> [B, L]] and
            ``switch_gates`` [float32 [B, switches], a leaf].
        """
        source, src_tokens = src_tokens, self.choose_tokens(src_tokens)
        padding_mask = src_tokens.eq(self.padding_idx)  # [B, S]
        has_padding = bool(padding_mask.any())
        known = padding_mask if has_padding else None
        x, encoder_embedding = self.embed_source(src_tokens, token_embeddings, known)
        states = [x] if return_all_hiddens else []
        first = self.describe_tokens(x, known, None)
        x = self.run_layer(0, x, first, LayerRows())
        if return_all_hiddens:
            states.append(x)
        decider = Decider(self.space, self.policy, path, src_tokens, padding_mask)
        decider.decide(1, self.view_for_policy(x))
        if path.gated:
            decider.open_gates()

        x, kept_mask, kept_positions = self._drop_tokens(x, padding_mask, decider.token_choice())
        has_padding = bool(kept_mask.any()) if kept_positions else has_padding
        positions = kept_positions[0] if kept_positions else None
        tokens = self.describe_tokens(x, kept_mask if has_padding else None, positions)
        rows = EncoderRows(decider)
        x = self._run_upper_layers(x, kept_mask, tokens, rows, states if return_all_hiddens else None)
        x = self.finish(x)
        if decision_log is not None:
            decision_log.append(decider.decisions())
        lengths = (~padding_mask).sum(dim=1, dtype=torch.int32).reshape(-1, 1).contiguous()  # [B, 1]
        return {
            "encoder_out": [x],  # [S', B, C]
            "encoder_padding_mask": [kept_mask],  # [B, S']
            "encoder_embedding": [encoder_embedding],  # [B, S, C]
            **{"encoder_states": states, "fc_results": [], "src_tokens": [], "src_lengths": [lengths]},
            **{"kept_positions": kept_positions, "source_length": [src_tokens.size(1)]},
            "decision_log": [] if decision_log is None else [decision_log],
            **describe_decisions(decider),
            **self.more_outputs(source, first, tokens, rows),
        }

    @torch.no_grad()
    def decide(self, src_tokens: Tensor) -> Decisions:
        """Returns what a policy that decides once decides for a batch; the upper layers do not run.

        Args:
            src_tokens: LongTensor [B, S].
        """
        src_tokens = self.choose_tokens(src_tokens)
        padding_mask = src_tokens.eq(self.padding_idx)  # [B, S]
        known = padding_mask if bool(padding_mask.any()) else None
        x, _ = self.embed_source(src_tokens, None, known)
        x = self.run_layer(0, x, self.describe_tokens(x, known, None), LayerRows())
        decider = Decider(self.space, self.policy, PathRequest(), src_tokens, padding_mask)
        decider.decide(1, self.view_for_policy(x))
        return decider.decisions()

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
        self, x: Tensor, padding_mask: Tensor, tokens: Any, rows: EncoderRows, states: Optional[List[Tensor]]
    ) -> Tensor:
        """Runs layers 2..L along the decided path: [S', B, C] -> [S', B, C]; appends the hidden states if wanted."""
        decider = rows.decider
        for index in range(1, len(self.layers)):
            if index > 1:
                decider.decide(index, self.view_for_policy(x), padding_mask)
            x = self.run_layer(index, x, tokens, rows.of_layer(index))
            if states is not None:
                states.append(x)
        if len(self.layers) > 1:
            decider.decide(len(self.layers), self.view_for_policy(x), padding_mask)
        return x

    def forward_torchscript(self, net_input: Dict[str, Any]) -> Dict[str, list]:
        """What fairseq's generators call; always the deployed path."""
        return self.forward(**{key: value for key, value in net_input.items() if key != "prev_output_tokens"})

    def reorder_encoder_out(self, encoder_out: Dict[str, list], new_order: Tensor) -> Dict[str, list]:
        """Reorders sentences, decisions included; the output that is given stays as it is.

        While a beam search shares one row among the hypotheses of a sentence (``shares_beam_rows``) nothing is copied:
        the decoder keeps what it needs in its incremental state from the first step on.
        """
        if self.shares_beam_rows:
            return encoder_out
        reordered = {**encoder_out, "fc_results": [], "gates": [], "switch_gates": []}
        for key in BY_ROWS:
            reordered[key] = [value.index_select(0, new_order) for value in encoder_out[key]]
        for key in BY_COLUMNS:
            reordered[key] = [value.index_select(1, new_order) for value in encoder_out[key]]
        reordered["decisions"] = [value.index_select(new_order) for value in encoder_out["decisions"]]
        return reordered


def describe_decisions(decider: Decider) -> Dict[str, list]:
    """Returns an encoder output's entries about what was decided."""
    return {
        "decisions": [decider.decisions()],
        "policy_states": decider.states,
        "gates": [] if decider.gates is None else [decider.gates],
        "switch_gates": [] if decider.switch_gates is None else [decider.switch_gates],
    }
