"""Pictures of a report: where the policy skips, and what quality costs."""

from __future__ import annotations

import logging
import os
import tempfile
from typing import Any, Dict, List

SITE_NAMES = {
    "encoder_attention": "encoder attention",
    "encoder_ffn": "encoder FFN",
    "decoder_attention": "decoder attention",
    "decoder_cross_attention": "decoder cross-attention",
    "decoder_ffn": "decoder FFN",
}
MARKERS = {"dense": "s", "switchable": "o", "random": "X"}


def load_pyplot() -> Any:
    """Imports matplotlib for files only.

    Raises:
        ValueError: matplotlib is missing.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq turns every library's debug messages on
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("pictures need matplotlib: pip install 'sd_fairseq[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: str) -> None:
    """Writes a PNG beside its place and renames it."""
    handle, part = tempfile.mkstemp(suffix=".png", dir=os.path.dirname(os.path.abspath(path)))
    os.close(handle)
    figure.savefig(part, dpi=150, bbox_inches="tight")
    os.replace(part, path)


def draw_skip_heatmap(system: Dict[str, Any], title: str, path: str) -> None:
    """Draws skip rates by site and layer, and the token strategies.

    Args:
        system: a system's part of ``report.json``.
        title: of the picture.
        path: PNG to write.
    """
    plt = load_pyplot()
    rates: Dict[str, List[Any]] = system["skip_rates_by_layer"]
    columns = max(len(layers) for layers in rates.values())
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(5.2 + 0.7 * columns, 3.6), gridspec_kw={"width_ratios": [max(2.2, 0.55 * columns), 1.6]}
    )
    grid = [
        [float("nan") if i >= len(layers) or layers[i] is None else 100 * layers[i] for i in range(columns)]
        for layers in rates.values()
    ]
    left.set_facecolor("#d9d9d9")
    image = left.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for row, layers in enumerate(rates.values()):
        for column in range(columns):
            if column >= len(layers):
                continue
            rate = layers[column]
            text = "runs" if rate is None else f"{100 * rate:.0f}"
            dark = rate is not None and rate < 0.5
            left.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    left.set_xticks(range(columns), [str(index + 1) for index in range(columns)])
    left.set_yticks(range(len(rates)), [SITE_NAMES[site] for site in rates])
    left.set_xlabel("layer")
    left.set_title("examples that skip the sub-layer (%)\ngrey: always runs", fontsize=10)
    figure.colorbar(image, ax=left, fraction=0.05, pad=0.03)
    strategies = system["token_strategies"]
    names = list(strategies)[::-1]
    shares = [100 * strategies[name] / system["examples"] for name in names]
    bars = right.barh(names, shares, color="#4c6a9c")
    right.bar_label(bars, [f"{share:.0f}" for share in shares], padding=3, fontsize=9)
    right.set_xlim(0, 115)
    right.set_ylim(-0.8, max(len(names), 4) - 0.2)
    right.set_xlabel("examples (%)")
    right.set_title("source tokens dropped (%)\nby strategy", fontsize=10)
    for side in ("top", "right"):
        right.spines[side].set_visible(False)
    figure.suptitle(
        f"{title}\n{system['distinct_paths']} distinct paths over {system['examples']} examples, "
        f"{100 * system['skip_rates']['token']:.1f} % of source tokens dropped",
        fontsize=11,
    )
    figure.tight_layout()
    save_figure(figure, path)
    plt.close(figure)


def draw_tradeoff(systems: Dict[str, Dict[str, Any]], title: str, path: str) -> None:
    """Draws ROUGE-L with its 95 % interval against relative FLOPs of generation.

    Args:
        systems: name -> its part of ``report.json``.
        title: of the picture.
        path: PNG to write.
    """
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(5.6, 4.0))
    colors = plt.get_cmap("viridis")
    for index, (name, system) in enumerate(systems.items()):
        low, high = system["rougeL_interval"]
        score, cost = system["rougeL"], system["flops_generation"]
        axes.errorbar(
            cost,
            score,
            yerr=[[score - low], [high - score]],
            marker=MARKERS.get(name, "D"),
            markersize=8,
            capsize=4,
            linestyle="none",
            color=colors(0.85 * index / max(len(systems) - 1, 1)),
            label=f"{name}: {score:.2f} at {cost:.2f}",
        )
    axes.set_xlabel("FLOPs of generation, relative to the dense path")
    axes.set_ylabel("ROUGE-L F (95 % bootstrap interval)")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.margins(x=0.15)
    axes.legend(frameon=False, fontsize=9, loc="best")
    save_figure(figure, path)
    plt.close(figure)
