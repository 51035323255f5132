"""What a set of decisions amounts to: skip rates by site and layer, token strategies, paths, FLOPs.

Source: "Switchable Decision" (ICML 2024), Table 10, whose columns are means over such figures. A mean skip rate hides a
collapsed policy, so the number of distinct paths, the share of the most frequent one and the entropy stand beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

from sd_fairseq.decision.trace import SITE_FIELDS, TraceRecord


@dataclass(frozen=True)
class SkipReport:
    """Figures of one system's trace.

    Args:
        examples: number of records.
        skip_rates: site -> share of skipped switchable sub-layers, 0..1; ``token`` -> mean share of dropped tokens.
        skip_rates_by_layer: site -> one rate a layer, None where the layer always runs.
        token_strategies: strategy -> number of examples.
        distinct_paths: number of different paths.
        top_path_share: share of the most frequent path.
        path_entropy: in bits.
        flops_generation, flops_paper: mean over examples of the FLOPs relative to the dense path of the same example.
        flops_corpus: FLOPs of generation of all examples over those of all their dense paths.
        gflops_per_example: mean absolute FLOPs of generation, 1e9.
        gflops_per_example_dense: the same of the examples' dense paths.
        seconds: of the whole generation.
    """

    examples: int
    skip_rates: Dict[str, float]
    skip_rates_by_layer: Dict[str, List[Optional[float]]]
    token_strategies: Dict[str, int]
    distinct_paths: int
    top_path_share: float
    path_entropy: float
    flops_generation: float
    flops_paper: float
    flops_corpus: float
    gflops_per_example: float
    gflops_per_example_dense: float
    seconds: float


def summarise_trace(records: Sequence[TraceRecord]) -> SkipReport:
    """Summarises a trace.

    Args:
        records: of one model; at least one.

    Raises:
        ValueError: records of models with different numbers of layers.
    """
    _check_one_model(records)
    by_layer = {site: _rates_by_layer(records, site) for site in _sites(records)}
    rates = {"token": _mean([1 - record.kept_source_tokens / record.source_tokens for record in records])}
    for site, layers in by_layer.items():
        switchable = [rate for rate in layers if rate is not None]
        if switchable:
            rates[site] = _mean(switchable)
    paths = Counter(record.path for record in records)
    gflops = _mean([record.flops_generation for record in records]) / 1e9
    gflops_dense = _mean([record.flops_generation_dense for record in records]) / 1e9
    shares = [count / len(records) for count in paths.values()]
    return SkipReport(
        examples=len(records),
        skip_rates=rates,
        skip_rates_by_layer=by_layer,
        token_strategies=dict(Counter(record.token_strategy for record in records).most_common()),
        distinct_paths=len(paths),
        top_path_share=max(shares),
        path_entropy=-sum(share * math.log2(share) for share in shares) + 0.0,
        flops_generation=_mean([record.relative_flops_generation for record in records]),
        flops_paper=_mean([record.relative_flops_paper for record in records]),
        flops_corpus=gflops / gflops_dense,
        gflops_per_example=gflops,
        gflops_per_example_dense=gflops_dense,
        seconds=sum(record.seconds for record in records),
    )


def _check_one_model(records: Sequence[TraceRecord]) -> None:
    first = records[0]
    for record in records:
        for site in SITE_FIELDS:
            depth, found = len(getattr(first, site)), len(getattr(record, site))
            if depth != found:
                pair = f"examples {first.id} and {record.id}"
                raise ValueError(f"{pair} come from different models: {depth} and {found} layers ({site})")


def _sites(records: Sequence[TraceRecord]) -> List[str]:
    """The sites to report; cross-attention only where it is a switch of its own."""
    apart = any(record.decoder_cross_attention != record.decoder_attention for record in records)
    return [site for site in SITE_FIELDS if apart or site != "decoder_cross_attention"]


def _rates_by_layer(records: Sequence[TraceRecord], site: str) -> List[Optional[float]]:
    """Share of every layer that is skipped: '0', or the tokens that a rule kept from it; None where all have '='."""
    rates: List[Optional[float]] = []
    for layer in range(len(getattr(records[0], site))):
        skipped = []
        for record in records:
            flag, shares = getattr(record, site)[layer], record.layer_shares if site.startswith("decoder") else None
            if shares is not None:
                skipped.append(1.0 if flag == "0" else 1 - shares[layer])
            elif flag != "=":
                skipped.append(float(flag == "0"))
        rates.append(_mean(skipped) if skipped else None)
    return rates


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
