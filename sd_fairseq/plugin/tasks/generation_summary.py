"""What fairseq-generate and fairseq-interactive say at their end: documents, FLOPs, what was skipped, seconds."""

from __future__ import annotations

import sys
from typing import Dict, List, Set, Tuple

from sd_fairseq.decision.trace import SITE_FIELDS, TraceRecord
from sd_fairseq.plugin.tasks.policy_summary import describe_skips


class GenerationSummary:
    """Sums over the sentences of a generation; of each sentence nothing but its path is kept.

    Attributes:
        shard: (this one, all).
        generator: how the model runs in the search.
        dense_wanted: True = nothing is to be skipped.
        interactive: True = more input may come.
    """

    def __init__(self) -> None:
        self.shard = (0, 1)
        self.generator = "fairseq"
        self.dense_wanted = self.interactive = False
        self.documents = self.described = 0
        self.seconds = self.relative = 0.0
        self.flops = self.dense_flops = 0
        self.skipped: Dict[str, float] = {}
        self.paths: Set[Tuple[str, ...]] = set()

    def count(self, documents: int, seconds: float) -> None:
        """Takes in a batch that nothing else is known of."""
        self.documents += documents
        self.seconds += seconds

    def add(self, records: List[TraceRecord], seconds: float) -> None:
        """Takes in a batch's records."""
        self.count(len(records), seconds)
        self.described += len(records)
        for record in records:
            self.relative += record.relative_flops_generation
            self.flops += record.flops_generation
            self.dense_flops += record.flops_generation_dense
            self.paths.add(record.path)
            shares = {"token": 1 - record.kept_source_tokens / record.source_tokens}
            for site in SITE_FIELDS:
                path = getattr(record, site).replace("=", "")
                shares[site] = path.count("0") / len(path) if path else 0.0
            for site, share in shares.items():
                self.skipped[site] = self.skipped.get(site, 0.0) + share

    def lines(self) -> List[str]:
        """Returns the summary, a WARNING last where a model that may skip skipped nothing."""
        shard = f" (shard {self.shard[0]} of {self.shard[1]})" if self.shard[1] > 1 else ""
        first = f"{self.documents} documents{shard} in {self.seconds:.1f} s, {self.generator} generator"
        if not self.described:
            return [first]
        share, corpus = self.relative / self.described, self.flops / self.dense_flops
        rates = {site: total / self.described for site, total in self.skipped.items()}
        if rates["decoder_cross_attention"] == rates["decoder_attention"]:  # decided together
            del rates["decoder_cross_attention"]
        skips = describe_skips(rates)
        second = f"FLOPs: {share:.3f} of the dense path (mean of the documents), {corpus:.3f} of all"
        third = f"skipped: {skips}; {len(self.paths)} distinct path{'s' if len(self.paths) > 1 else ''}"
        if skips == "nothing" and not self.dense_wanted:
            return [first, second, "WARNING: this model skipped nothing; see its training log for the line \"policy:\""]
        return [first, second, third]

    def report(self) -> None:
        """Prints the summary on stderr, if anything was generated."""
        if self.documents:
            print("\n".join("sd_fairseq: " + line for line in self.lines()), file=sys.stderr)
