"""Pictures of a report: where the policy skips, and what quality costs.

"Switchable Decision" (ICML 2024, section 4) gives both as tables; a mean rate hides which layers it comes from.
"""

from __future__ import annotations

import itertools
import logging
import textwrap
from typing import Any, Dict, List

SITE_NAMES = {
    "encoder_attention": "encoder attention",
    "encoder_ffn": "encoder FFN",
    "decoder_attention": "decoder attention",
    "decoder_cross_attention": "decoder cross-attention",
    "decoder_ffn": "decoder FFN",
}
MARKERS = {"dense": "s", "switchable": "o", "random": "X"}
OTHER_MARKERS = "D^vP*<>"


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
    _draw_rates(figure, left, rates, columns)
    _draw_strategies(right, system["token_strategies"], system["examples"])
    paths = system["distinct_paths"]
    figure.suptitle(
        f"{textwrap.fill(title, 70)}\n{paths} distinct path{'' if paths == 1 else 's'} over {system['examples']} "
        f"examples, {100 * system['skip_rates']['token']:.1f} % of source tokens dropped",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)


def _draw_rates(figure: Any, axes: Any, rates: Dict[str, List[Any]], columns: int) -> None:
    """Fills one cell a sub-layer; grey where it always runs, hatched where the stack has no such layer."""
    grid = [
        [float("nan") if i >= len(layers) or layers[i] is None else 100 * layers[i] for i in range(columns)]
        for layers in rates.values()
    ]
    axes.set_facecolor("#d9d9d9")
    image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for row, layers in enumerate(rates.values()):
        if len(layers) < columns:
            corner, width = (len(layers) - 0.5, row - 0.5), columns - len(layers)
            look = {"facecolor": "white", "edgecolor": "#bfbfbf", "hatch": "///", "linewidth": 0}
            axes.add_patch(load_pyplot().Rectangle(corner, width, 1, **look))
        for column, rate in enumerate(layers):
            text = "runs" if rate is None else f"{100 * rate:.0f}"
            dark = rate is not None and rate < 0.5
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes.set_xticks(range(columns), [str(index + 1) for index in range(columns)])
    axes.set_yticks(range(len(rates)), [SITE_NAMES[site] for site in rates])
    axes.set_xlabel("layer")
    uneven = any(len(layers) < columns for layers in rates.values())
    legend = "grey: always runs" + (", hatched: no such layer" if uneven else "")
    axes.set_title(f"examples that skip the sub-layer (%)\n{legend}", fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)


def _draw_strategies(axes: Any, strategies: Dict[str, int], examples: int) -> None:
    """Draws the share of examples that choose each token strategy."""
    names = list(strategies)[::-1]
    shares = [100 * strategies[name] / examples for name in names]
    bars = axes.barh(names, shares, color="#4c6a9c")
    axes.bar_label(bars, [f"{share:.0f}" for share in shares], padding=3, fontsize=9)
    axes.set_xlim(0, 115)
    axes.set_ylim(-0.8, max(len(names), 4) - 0.2)
    axes.set_xlabel("examples (%)")
    axes.set_title("token strategy\n(kind : % of tokens dropped)", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


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
    others = itertools.cycle(OTHER_MARKERS)
    for index, (name, system) in enumerate(systems.items()):
        low, high = system["rougeL_interval"]
        score, cost = system["rougeL"], system["flops_generation"]
        axes.errorbar(
            cost,
            score,
            yerr=[[max(0.0, score - low)], [max(0.0, high - score)]],
            marker=MARKERS.get(name) or next(others),
            markersize=9,
            markerfacecolor="none",  # points at the same place stay visible
            markeredgewidth=1.8,
            capsize=4,
            linestyle="none",
            color=colors(0.85 * index / max(len(systems) - 1, 1)),
            label=f"{name}: {score:.2f} at {cost:.2f}",
        )
    axes.set_xlabel("FLOPs of generation, relative to the dense path")
    axes.set_ylabel("ROUGE-L F, 0-100 (95 % bootstrap interval)")
    axes.set_title(textwrap.fill(title, 60), fontsize=11)
    axes.grid(alpha=0.3)
    axes.margins(x=0.15)
    handles = [container[0] for container in axes.containers]  # the markers without their intervals
    labels = axes.get_legend_handles_labels()[1]
    axes.legend(handles, labels, frameon=False, fontsize=9, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    figure.savefig(path, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
