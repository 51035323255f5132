"""The few lines that end a generation on standard error: what was skipped, what that saved, how long it took."""

from __future__ import annotations

import sys
from multiprocessing.util import Finalize
from typing import Any, Dict, List, Optional, Set

from sd_fairseq.cost.path_flops import Lengths, dense_flops, path_flops
from sd_fairseq.decision.decisions import SITES, Decisions, DecisionSpace

MISSED_BY, MANY = 0.03, 30  # share of the dense FLOPs: more is a budget missed; documents that a mean is judged by
HINT = "train a policy, or name a path with --sd-path; --sd-path dense says that this is wanted"


class GenerationSummary:
    """Sums over batches; keeps no document, only one number a distinct path.

    Choice: fairseq has no hook at the end of a generation, so the summary is printed when the process ends. That also
    holds for the processes that fairseq spawns, for a closed pipe, and after an error, whose own line stands above.

    Args:
        wants_dense: nothing was to be skipped, so that it needs no warning.
    """

    def __init__(self, wants_dense: bool = False):
        self.wants_dense = wants_dense
        self.documents, self.seconds = 0, 0.0
        self.expected: Optional[int] = None
        self.shard, self.num_shards = 0, 1
        self.generator = "fairseq's generator"
        self.decided = 0  # documents whose decisions are known
        self.flops, self.dense_flops, self.shares = 0.0, 0.0, 0.0
        self.skipped = dict.fromkeys(SITES, 0.0)
        self.switchable = dict.fromkeys(SITES, 0)
        self.tokens, self.kept_tokens = 0, 0
        self.paths: Set[int] = set()
        self.budget: Optional[float] = None  # that was asked for
        self.rule = ""  # that decided about decoder layers step by step
        self.tokens_given, self.layers_run, self.layers = 0, 0, 0  # of all hypotheses
        self.finalizer: Optional[Finalize] = None

    def add_batch(self, documents: int, seconds: float, fast: bool) -> None:
        """Counts a batch; the first one arranges for the summary to be printed."""
        if self.finalizer is None:
            self.finalizer = Finalize(None, self.print, exitpriority=10)
        self.documents += documents
        self.seconds += seconds
        self.generator = "the fast generator" if fast else "fairseq's generator"

    def add_decisions(
        self, space: DecisionSpace, shape: Any, decisions: Decisions, lengths: Lengths, kept: Any
    ) -> None:
        """Counts what a batch decided.

        Args:
            space, shape: the model's.
            decisions: on the CPU.
            lengths: source tokens and decoder steps [B].
            kept: LongTensor [B], source tokens after the token strategies.
        """
        flops = path_flops("generation", shape, space, decisions, lengths).double()
        dense = dense_flops("generation", shape, space, lengths).double()
        self.decided += len(decisions)
        self.flops += float(flops.sum())
        self.dense_flops += float(dense.sum())
        self.shares += float((flops / dense).sum())
        self.tokens += int(lengths.source.sum())
        self.kept_tokens += int(kept.sum())
        for site in SITES:
            keep = getattr(decisions, site).double()  # [B, L]
            if lengths.work is not None and site.startswith("decoder"):
                keep = keep * lengths.work.share
            else:
                keep = keep[:, [layer for _, layer in space.switch_indices(site)]]
            self.switchable[site] += keep.numel()
            self.skipped[site] += float((1 - keep).sum())
        if lengths.work is not None:
            self.tokens_given += int(lengths.work.given.sum())
            self.layers_run += int(lengths.work.tokens.sum())
            self.layers = lengths.work.tokens.size(1)
        for row in range(len(decisions)):
            self.paths.add(hash(tuple(space.describe(decisions, row).values())))

    @property
    def skips_nothing(self) -> bool:
        """True = decisions are known, and none of them skipped anything."""
        return self.decided > 0 and not any(self.skipped.values()) and self.tokens == self.kept_tokens

    def lines(self) -> List[str]:
        """Renders the summary."""
        count = f"{self.documents:,}"
        if self.expected is not None and self.expected != self.documents:
            count += f" of {self.expected:,}"
        shard = f" of shard {self.shard} of {self.num_shards}" if self.num_shards > 1 else ""
        lines = [f"{count} documents{shard} in {self.seconds:.1f} s by {self.generator}"]
        if self.decided == 0:
            return lines
        corpus, mean = self.flops / self.dense_flops, self.shares / self.decided
        share = f"{corpus:.4f}"
        if f"{mean:.4f}" != share:
            share += f" (mean of documents {mean:.4f})"
        budget = "" if self.budget is None else f" (budget {self.budget:g})"
        lines.append(f"{share} of the dense model's FLOPs{budget}, {len(self.paths):,} distinct paths")
        if self.budget is not None and self.decided >= MANY and abs(mean - self.budget) > MISSED_BY:
            lines.append(f"WARNING: these documents cost {mean - self.budget:+.3f} beside the budget, in their mean")
        if self.tokens_given:
            mean_layers = self.layers_run / self.tokens_given
            lines.append(f"{mean_layers:.2f} of {self.layers} decoder layers a token, by {self.rule}")
        if self.skips_nothing:
            warning = "" if self.wants_dense else f"WARNING: a switchable model skipped nothing: {HINT}"
            return [*lines, warning] if warning else lines
        return [*lines, "skipped: " + ", ".join(f"{name} {part:.1%}" for name, part in self._parts().items())]

    def _parts(self) -> Dict[str, float]:
        parts = {site: self.skipped[site] / of for site, of in self.switchable.items() if of}
        return {**parts, "source_tokens": 1 - self.kept_tokens / self.tokens}

    def print(self) -> None:
        """Prints to standard error; a closed one is no error."""
        try:
            for line in self.lines():
                print(f"sd_fairseq: {line}", file=sys.stderr)
            sys.stderr.flush()
        except (OSError, ValueError):
            return
