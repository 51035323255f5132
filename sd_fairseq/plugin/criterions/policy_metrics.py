"""What the criterion logs about decisions: summable figures of a batch, and their reduction for fairseq's loggers."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import torch
from fairseq.logging import metrics
from torch import Tensor

from sd_fairseq.cost.path_flops import Lengths, ModelShape, dense_flops, path_flops, relative_flops
from sd_fairseq.decision.decisions import SITES, Decisions, DecisionSpace
from sd_fairseq.decision.token_strategies import count_kept_tokens


def describe_path(
    space: DecisionSpace, shape: ModelShape, decisions: Decisions, lengths: Lengths, per_example: Optional[Tensor]
) -> Dict[str, Any]:
    """Sums a batch's figures over its examples.

    Args:
        space, shape: what the model decides about, and its dimensions.
        decisions: the deployed paths.
        lengths: of the batch.
        per_example: [B] quality of the deployed paths (see :class:`~sd_fairseq.plugin.criterions.quality.Quality`);
            None = not measured.
    """
    kept = count_kept_tokens(lengths.source, space.token_strategies).gather(1, decisions.token_choice.unsqueeze(1))
    figures: Dict[str, Any] = {
        "sd_examples": lengths.source.numel(),
        "sd_batches": 1,
        "sd_distinct_paths": decisions.count_distinct_paths(),
        "sd_skip_token": (1 - kept.squeeze(1) / lengths.source).sum(),
    }
    if per_example is not None:
        figures["sd_quality_mode"] = per_example.detach().sum()
    for definition in ("generation", "paper"):
        relative = relative_flops(definition, shape, space, decisions, lengths)
        figures[f"sd_flops_{definition}"] = relative.sum().float()
    figures["sd_gflops"] = path_flops("generation", shape, space, decisions, lengths).sum().float() / 1e9
    figures["sd_gflops_dense"] = dense_flops("generation", shape, space, lengths).sum().float() / 1e9
    for site in SITES:
        layers = [layer for _, layer in space.switch_indices(site)]
        if layers and (site != "decoder_cross_attention" or space.cross_attention_apart):
            kept_layers = getattr(decisions, site)[:, layers].float()
            figures[f"sd_skip_{site}"] = (1 - kept_layers.mean(dim=1)).sum()
    for index, strategy in enumerate(space.token_strategies):
        name = str(strategy).replace(":", "_")
        figures[f"sd_tokens_{name}"] = (decisions.token_choice == index).sum()
    return figures


def reduce_policy_metrics(logging_outputs: List[Dict[str, Any]]) -> None:
    """Logs the figures summed over workers and micro-batches; absent ones (a plain validation, say) are left out."""
    totals: Dict[str, Any] = {}
    for output in logging_outputs:
        for key, value in output.items():
            if key.startswith("sd_"):
                totals[key] = totals.get(key, 0) + value
    if not totals.get("sd_examples"):
        return
    counts = {
        "sd_quality_sample": "sd_sampled",
        "sd_quality_dense": "sd_dense",
        "sd_quality_dense_dropout_off": "sd_dense",
        "sd_multiplier": "sd_policy_batches",
        "sd_violation": "sd_policy_batches",
        "sd_distinct_paths": "sd_batches",
    }
    dense = totals.pop("sd_gflops_dense", 0)
    gflops = totals.pop("sd_gflops", 0)
    if dense:  # weighed by its own denominator, the mean over batches is the corpus's share
        metrics.log_scalar("sd_flops_corpus", float(gflops) / float(dense), float(dense), round=4)
    for key, total in sorted(totals.items()):
        if key in ("sd_examples", "sd_batches", "sd_sampled", "sd_dense", "sd_policy_batches"):
            continue
        count = totals.get(counts.get(key, "sd_examples"), 0)
        if count:
            metrics.log_scalar(key, float(total) / float(count), float(count), round=4)


def count_nothing(figures: Dict[str, Any]) -> Dict[str, Any]:
    """Returns zeros for the figures of a batch that does not count.

    The keys stay: fairseq adds the workers' figures up in one all-reduce, which needs the same ones everywhere.
    """
    return {key: torch.zeros_like(value) if torch.is_tensor(value) else 0 for key, value in figures.items()}
