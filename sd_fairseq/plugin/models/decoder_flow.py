"""The flow of every switchable decoder: embed, the layers along the decided paths, caches that follow a search.

A family says how it embeds, what its self-attention adds to the scores, how it ends and where its caches are.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from sd_fairseq.decision.rules import DecisionRule
from sd_fairseq.execution.decoder_plan import DecoderPlan, compact_order
from sd_fairseq.execution.layer_rows import LayerRows
from sd_fairseq.execution.token_depth import TokenDepth
from sd_fairseq.execution.tokens import restore_positions

IncrementalState = Dict[str, Dict[str, Optional[Tensor]]]


class DecoderFlow:
    """Put before a family's decoder, one of fairseq's incremental decoders with ``layers``.

    Attributes:
        attention_layer: layer (from 0) whose cross-attention is returned by default: the one that always runs.
        rule: which layers run at a step, of those that the decisions keep.
    """

    layers: Any
    attention_layer: int
    rule: DecisionRule = DecisionRule()

    def embed_target(
        self, tokens: Tensor, incremental_state: Optional[IncrementalState], encoder_out: Dict[str, list]
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Embeds [R, T] tokens (the last one only in a search): [T, R, C] and their padding mask or None."""
        raise NotImplementedError

    def source_of(self, encoder_out: Dict[str, list], layer: int) -> Any:
        """Returns what layer ``layer`` (from 0) attends to beside the target: the encoder's states [S', B, C]."""
        return encoder_out["encoder_out"][0]

    def self_attention_mask(self, x: Tensor, steps: int, causal: bool) -> Optional[Tensor]:
        """Returns what is added to the scores of self-attention; what a family's layers take.

        Args:
            x: [T, R, C], of the last step only in a search.
            steps: tokens so far.
            causal: later tokens are to be hidden.
        """
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """What follows the last layer: [T, R, C] -> [R, T, C]."""
        raise NotImplementedError

    def reorder_cache(self, layer: int, site: str, incremental_state: IncrementalState, order: Tensor) -> None:
        """Selects the rows ``order`` of the cache of ``decoder_attention`` or ``decoder_cross_attention``, if any."""
        raise NotImplementedError

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict[str, list]],
        incremental_state: Optional[IncrementalState] = None,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
    ) -> Tuple[Tensor, Dict[str, list]]:
        """As fairseq's, along the decided paths.

        Args:
            prev_output_tokens: LongTensor [R, T]; R = sentences * beam rows.
            encoder_out: the switchable encoder's output.
            incremental_state: caches of a search, or None in teacher forcing.
            full_context_alignment, alignment_layer, alignment_heads: as fairseq's.

        Returns:
            Features [R, T, C]; ``attn`` [[R, T, S]] over the original source positions and ``inner_states``.
        """
        if encoder_out is None:
            raise ValueError("the switchable decoder needs the switchable encoder's output, found None")
        plan = self._plan(encoder_out, incremental_state, *prev_output_tokens.size())
        x, padding_mask = self.embed_target(prev_output_tokens, incremental_state, encoder_out)  # [T, R, C]
        source_padding = encoder_out["encoder_padding_mask"][0] if encoder_out["encoder_padding_mask"] else None
        wanted_layer = self.attention_layer if alignment_layer is None else alignment_layer
        gates = encoder_out["gates"][0] if encoder_out.get("gates") else None
        causal = incremental_state is None and not full_context_alignment
        mask = self.self_attention_mask(x, prev_output_tokens.size(1), causal)
        attention: Optional[Tensor] = None
        inner_states: List[Tensor] = [x]
        depth = None if incremental_state is not None else TokenDepth(self.rule, x, len(self.layers), self._head)
        for index, layer in enumerate(self.layers):
            rows = LayerRows(plan.attention_rows[index], plan.ffn_rows[index], plan.cross_sentences[index], plan.beam)
            if gates is not None:
                rows = LayerRows(gates=(gates, index))
            run = partial(
                layer,
                encoder_out=self.source_of(encoder_out, index),
                encoder_padding_mask=source_padding,
                incremental_state=incremental_state,
                self_attn_mask=mask,
                self_attn_padding_mask=padding_mask,
                need_attn=index == wanted_layer,
            )
            runs = None if depth is None else depth.runs(index)
            x, weights = self._run_layer(index, run, x, rows, depth)
            inner_states.append(x)
            if weights is not None:
                attention = self._spread_attention(weights, rows, plan, x, alignment_heads)
                attention = attention if runs is None else attention * runs.t().unsqueeze(-1)
        x = x if depth is None else depth.finish(x)
        return self.finish(x), {"attn": [attention], "inner_states": inner_states}

    def _run_layer(
        self, index: int, run: Any, x: Tensor, rows: LayerRows, depth: Optional[TokenDepth]
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Runs layer ``index`` (from 0) for the tokens whose turn it is: [T, R, C] -> [T, R, C], and its weights."""
        before = x
        x, weights = run(x, rows=rows)
        runs = None if depth is None else depth.runs(index)
        if runs is not None:
            passed = before
            if not self.rule.by_confidence:
                nobody = torch.empty(0, dtype=torch.long, device=x.device)
                passed, _ = run(before, rows=LayerRows(nobody, nobody, nobody))
            x = torch.where(runs.unsqueeze(-1), x, passed)
        if depth is not None:
            depth.ask(index, x, before)
        return x, weights

    def _head(self, x: Tensor) -> Tensor:
        """Logits of states: [T, R, C] -> [T, R, V]."""
        return self.output_layer(self.finish(x)).transpose(0, 1)  # type: ignore[attr-defined]

    def _plan(
        self, encoder_out: Dict[str, list], incremental_state: Optional[IncrementalState], num_rows: int, steps: int
    ) -> DecoderPlan:
        """Takes the search's plan, or makes one from the decisions in the encoder's output; new where layers end."""
        saved: Any = None
        if incremental_state is not None:
            saved = self.get_incremental_state(incremental_state, "plan")  # type: ignore[attr-defined]
        if saved and not self.rule.layers_ending(steps - 1):
            return saved["plan"]
        if saved:
            old: DecoderPlan = saved["plan"]
            decisions, positions, length = old.decisions, old.positions, old.source_length
        else:
            decisions, length = encoder_out["decisions"][0], encoder_out["source_length"][0]
            positions = encoder_out["kept_positions"][0] if encoder_out["kept_positions"] else None
        if incremental_state is not None:
            decisions = self.rule.narrow(decisions, steps - 1)
        plan = DecoderPlan.build(decisions, num_rows, positions, length)
        if incremental_state is not None:
            self.set_incremental_state(incremental_state, "plan", {"plan": plan})  # type: ignore[attr-defined]
        return plan

    def _spread_attention(
        self, weights: Tensor, rows: LayerRows, plan: DecoderPlan, x: Tensor, heads: Optional[int]
    ) -> Tensor:
        """Averages [H, K, T, S'] over heads and spreads it over all rows and original positions: [R, T, S]."""
        weights = weights.float().to(x)
        mean = (weights if heads is None else weights[:heads]).mean(dim=0)  # [K, T, S']
        kept = rows.cross_rows
        if kept is not None:
            mean = mean.new_zeros(plan.num_rows, mean.size(1), mean.size(2)).index_copy(0, kept, mean)
        if plan.positions is None:
            return mean
        positions = plan.positions.repeat_interleave(plan.beam, dim=0)  # [R, S']
        return restore_positions(mean, positions, plan.source_length)

    def reorder_incremental_state_scripting(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Reorders the caches of a search; each layer's holds the rows that keep it.

        Args:
            incremental_state: the search's caches.
            new_order: LongTensor [R'], the row before of every row after, sentence-major.
        """
        saved: Any = self.get_incremental_state(incremental_state, "plan")  # type: ignore[attr-defined]
        if not saved:
            return
        old: DecoderPlan = saved["plan"]
        sentence_order = old.sentence_order(new_order)
        removes_sentences = not old.keeps_sentences(sentence_order)
        new = old.reorder(sentence_order) if removes_sentences else old
        for index in range(len(self.layers)):
            before, after = old.attention_rows[index], new.attention_rows[index]
            order = compact_order(before, after, new_order, old.num_rows)
            self.reorder_cache(index, "decoder_attention", incremental_state, order)
            if removes_sentences:
                before, after = old.cross_sentences[index], new.cross_sentences[index]
                order = compact_order(before, after, sentence_order, len(old.decisions))
                self.reorder_cache(index, "decoder_cross_attention", incremental_state, order)
        self.set_incremental_state(incremental_state, "plan", {"plan": new})  # type: ignore[attr-defined]

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """As :meth:`reorder_incremental_state_scripting`, for callers of fairseq's older name."""
        self.reorder_incremental_state_scripting(incremental_state, new_order)
