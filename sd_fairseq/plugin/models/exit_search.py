"""A search whose tokens leave the decoder early (rules by confidence), with its own caches; see :mod:`.exit_layer`."""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple

import torch
from torch import Tensor

from sd_fairseq.cost.layer_work import LayerWork
from sd_fairseq.decision.confidence_rules import ConfidenceRule
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.execution.beam_cache import FIRST_STEPS
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.exit_layer import ExitLayer, ModuleParts, Tokens, one_each, waiting


class ExitSearch:
    """A decoder's state during one search under a rule by confidence.

    Args:
        rule: of the decoder.
        layers: its layers, with the source of the batch.
        head: makes logits [N, V] of states [N, C] after any layer.
        decisions: of the batch.
        beam: hypotheses a sentence.
        log: what the search counts is appended to it, or None.

    Raises:
        InputError: several hypotheses where the rule keeps one, or decisions that skip a decoder's sub-layer.
    """

    def __init__(
        self,
        rule: ConfidenceRule,
        layers: List[ExitLayer],
        head: Callable[[Tensor], Tensor],
        decisions: Decisions,
        beam: int,
        log: Optional[List[Any]],
    ):
        kept = decisions.decoder_attention & decisions.decoder_cross_attention & decisions.decoder_ffn
        if not bool(kept.all()):
            raise InputError(f"{rule.text}: leaves a decoder that skips nothing, found decisions that skip")
        if rule.needs_beam_1 and beam > 1:
            raise InputError(f"{rule.text}: keeps one hypothesis a sentence, found {beam}: give --beam 1")
        self.rule, self.layers, self.make_logits, self.beam = rule, layers, head, beam
        device, sentences = layers[0].keys.device, len(decisions)
        self.left: Optional[Tensor] = None  # [R, steps, C], states at the exit of what waits
        self.done = torch.zeros(sentences * beam, dtype=torch.long, device=device)  # positions that every layer has
        self.sentences = torch.arange(sentences, device=device)  # those that are left
        self.work = start_work(sentences, len(layers), device)
        if log is not None:
            log.append(self.work)

    def reorder(self, new_order: Tensor) -> None:
        """Follows the search; LongTensor [R'], the row before of every row after, sentence-major."""
        sentences = torch.div(new_order.view(-1, self.beam)[:, 0], self.beam, rounding_mode="floor")
        for layer in self.layers:
            layer.select(new_order, sentences)
        self.left = None if self.left is None else self.left.index_select(0, new_order)
        self.done = self.done.index_select(0, new_order)
        self.sentences = self.sentences.index_select(0, sentences)

    def step(self, x: Tensor, step: int) -> Tuple[Tensor, Tensor]:
        """Runs one step.

        Args:
            x: [R, C], embedded.
            step: from 0.

        Returns:
            States [R, C] with which the tokens left, and logits [R, V].
        """
        everyone = torch.arange(x.size(0), device=x.device)
        self._count(self.work.given, everyone)
        return self._defer(x, step, everyone) if self.rule.defers else self._fill(x, step, everyone)

    def _fill(self, x: Tensor, step: int, everyone: Tensor) -> Tuple[Tensor, Tensor]:
        """CALM: rows leave one after the other; the layers above get the keys and values of their states."""
        logits: Optional[Tensor] = None
        staying = everyone
        for index, layer in enumerate(self.layers):
            gone = left_out(everyone, staying)
            if gone.numel():
                layer.fill(x.index_select(0, gone), gone, torch.full_like(gone, step))
                self._count(self.work.filled[:, index], gone)
            if not staying.numel():
                continue
            before = x.index_select(0, staying)
            after = self._run(index, before, one_each(staying, step, x.size(0)), step)
            x = x.index_copy(0, staying, after)
            if self.rule.exits_after(index + 1, len(self.layers)):
                leaves, scores = self._ask(after, before, staying, step)
                if scores is not None:
                    logits = scores if logits is None else logits.index_copy(0, staying, scores)
                staying = staying[~leaves]
        if logits is None:
            return x, self._head(x, everyone)
        if staying.numel():
            logits = logits.index_copy(0, staying, self._head(x.index_select(0, staying), staying))
        return x, logits

    def _defer(self, x: Tensor, step: int, everyone: Tensor) -> Tuple[Tensor, Tensor]:
        """FREE: rows leave at one exit, or run the other layers with all that they have left out so far."""
        first = self.rule.first
        before = x
        for index in range(first):
            before, x = x, self._run(index, x, one_each(everyone, step, x.size(0)), step)
        leaves, logits = self._ask(x, before, everyone, step)
        if self.left is None:
            self.left = x.new_zeros(x.size(0), FIRST_STEPS, x.size(1))
        while step >= self.left.size(1):
            self.left = torch.cat([self.left, torch.zeros_like(self.left)], dim=1)
        self.left[:, step] = x
        staying = everyone[~leaves]
        if not staying.numel():
            return x, logits
        tokens = waiting(staying, self.done.index_select(0, staying), step)
        deep = self.left[tokens.row_of, tokens.positions]  # [N, C]
        for index in range(first, len(self.layers)):
            deep = self._run(index, deep, tokens, step)
        self.done[staying] = step + 1
        newest = deep[tokens.positions == step]
        logits = logits.index_copy(0, staying, self._head(newest, staying))
        return x.index_copy(0, staying, newest), logits

    def _run(self, index: int, x: Tensor, tokens: Tokens, step: int) -> Tensor:
        self._count(self.work.tokens[:, index], tokens.row_of)
        self._count(self.work.keys[:, index], tokens.row_of, step + 1)
        return self.layers[index].run(x, tokens, step + 1)

    def _ask(self, x: Tensor, before: Tensor, rows: Tensor, step: int) -> Tuple[Tensor, Any]:
        """Asks the rule which of ``rows`` leave; see :meth:`ConfidenceRule.leaves`."""
        return self.rule.leaves(x, before, torch.full_like(rows, step), lambda states: self._head(states, rows))

    def _head(self, x: Tensor, rows: Tensor) -> Tensor:
        """Makes logits of the rows' states: [N, C] -> [N, V]."""
        self._count(self.work.heads, rows)
        return self.make_logits(x)

    def _count(self, counts: Tensor, rows: Tensor, each: int = 1) -> None:
        """Adds ``each`` for every one of ``rows`` to its sentence's count."""
        sentence = self.sentences.index_select(0, torch.div(rows, self.beam, rounding_mode="floor"))
        counts.index_add_(0, sentence, torch.full_like(sentence, each))


def search_with_modules(decoder: Any, encoder_out: dict, rows: int) -> ExitSearch:
    """Begins a search that runs fairseq's modules.

    Args:
        decoder: a switchable BART's.
        encoder_out: the switchable encoder's output.
        rows: R = sentences * beam.
    """
    source, padding = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]  # [S', B, C], [B, S']
    hidden = padding.view(padding.size(0), 1, 1, -1) if bool(padding.any()) else None
    beam = rows // source.size(1)
    parts = [ModuleParts(layer) for layer in decoder.layers]
    layers = [ExitLayer(one, *one.source(source), hidden, beam, source.dtype) for one in parts]

    def head(x: Tensor) -> Tensor:
        return decoder.output_layer(decoder.finish(x.unsqueeze(0))).squeeze(1)  # [N, V]

    log = encoder_out["decision_log"][0] if encoder_out.get("decision_log") else None
    return ExitSearch(decoder.rule, layers, head, encoder_out["decisions"][0], beam, log)


def start_work(sentences: int, layers: int, device: torch.device) -> LayerWork:
    """Returns the counts of a search that has not begun; it adds to them in place.

    Choice: the source's keys and values are made for all layers when the search begins.
    """
    by_layer = [torch.zeros(sentences, layers, dtype=torch.long, device=device) for _ in range(3)]
    sources = torch.ones(sentences, layers, dtype=torch.bool, device=device)
    heads, given = (torch.zeros(sentences, dtype=torch.long, device=device) for _ in range(2))
    return LayerWork(*by_layer, sources, heads, given)


def left_out(everyone: Tensor, staying: Tensor) -> Tensor:
    """Returns those of ``everyone`` (0..R-1) that are not among ``staying``."""
    gone = torch.ones_like(everyone, dtype=torch.bool)
    gone[staying] = False
    return everyone[gone]
