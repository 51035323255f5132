"""Draws docs/method.svg: how a document flows through the model, and what decides.

    python tools/draw_method.py docs/method.svg

Source: "Switchable Decision" (ICML 2024), Figure 1.
"""

from __future__ import annotations

import sys
from typing import List, Optional, Sequence

from sd_fairseq.whole_files import write_text

WIDTH, HEIGHT = 860, 330
RUN, SKIP, POLICY, INK = "#2f6f9f", "#b8bec4", "#c8641b", "#22282d"
# What one document may take: sub-layers that run (1) or are skipped (0), from the second encoder layer on.
ENCODER = ("10", "01", "10", "00", "11")
DECODER = ("11", "01", "11", "11", "11", "11")
TOKENS = "1111111000"


def box(x: float, y: float, width: float, height: float, text: str, color: str, skipped: bool = False) -> str:
    """Returns a labelled box; a skipped one is an outline."""
    look = f'fill="white" stroke="{SKIP}" stroke-dasharray="4 3"' if skipped else f'fill="{color}"'
    ink = SKIP if skipped else "white"
    middle = f'x="{x + width / 2:g}" y="{y + height / 2 + 4:g}"'
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" {look}/>'
        f'<text {middle} text-anchor="middle" fill="{ink}">{text}</text>'
    )


def note(x: float, y: float, text: str, color: str = INK, anchor: str = "start", weight: str = "normal") -> str:
    """Returns a line of text."""
    return f'<text x="{x:g}" y="{y:g}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}">{text}</text>'


def arrow(points: Sequence[Sequence[float]], color: str = INK, dashed: bool = False) -> str:
    """Returns a line with a head at its end."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    head = "policy" if color == POLICY else "ink"
    line = f'fill="none" stroke="{color}" stroke-width="1.6"{dashes} marker-end="url(#{head})"'
    return f'<polyline points="{path}" {line}/>'


def stack(left: float, top: float, layers: Sequence[str]) -> List[str]:
    """Returns layers from left to right, each an attention above a feed-forward sub-layer."""
    parts = []
    for place, layer in enumerate(layers):
        x, attention, ffn = left + place * 62, layer[0], layer[1]
        parts.append(box(x, top, 52, 30, "ATT", RUN, attention == "0"))
        parts.append(box(x, top + 36, 52, 30, "FFN", RUN, ffn == "0"))
    return parts


def draw() -> str:
    """Returns the picture, SVG."""
    parts = [note(20, 28, "source tokens", weight="bold")]
    for place, kept in enumerate(TOKENS):
        parts.append(box(20 + place * 14, 38, 11, 22, "", RUN, kept == "0"))
    parts += [note(20, 78, "tokens, too, may be"), note(20, 95, "dropped after layer 1")]
    parts += [note(190, 28, "encoder layer 1", weight="bold"), box(190, 38, 90, 66, "always runs", RUN)]
    parts += [note(440, 28, "encoder layers 2 to 6", weight="bold"), *stack(440, 38, ENCODER)]
    parts += [note(440, 212, "decoder layers 1 to 6, for every token of the summary", weight="bold")]
    parts += stack(440, 222, DECODER)
    parts += [box(190, 170, 170, 40, "policy: one small layer", POLICY)]
    parts += [arrow([(162, 49), (187, 49)]), arrow([(282, 71), (436, 71)]), arrow([(235, 106), (235, 168)], POLICY)]
    parts += [note(243, 142, "mean over the tokens", POLICY)]
    parts += [arrow([(362, 182), (415, 182), (415, 90), (436, 90)], POLICY, True)]
    parts += [arrow([(362, 198), (415, 198), (415, 262), (436, 262)], POLICY, True)]
    parts += [
        note(190, 232, "decides once a document", POLICY),
        note(190, 250, "which sub-layers, which tokens", POLICY),
    ]
    parts += [arrow([(590, 106), (590, 196)]), note(600, 156, "what the decoder looks at")]
    parts += [box(20, 280, 40, 22, "", RUN), note(68, 296, "runs")]
    parts += [box(120, 280, 40, 22, "", RUN, True), note(168, 296, "skipped: not computed at all")]
    heads = "".join(
        f'<marker id="{name}" markerWidth="9" markerHeight="9" refX="7" refY="3.5" orient="auto">'
        f'<path d="M0,0 L8,3.5 L0,7 z" fill="{color}"/></marker>'
        for name, color in (("ink", INK), ("policy", POLICY))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" role="img">\n'
        "<title>A policy reads encoder layer 1 and chooses which sub-layers and tokens run</title>\n"
        f'<defs>{heads}</defs>\n<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Writes the picture; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1:
        print("usage: draw_method.py SVG", file=sys.stderr)
        return 2
    write_text(given[0], draw())
    return 0


if __name__ == "__main__":
    sys.exit(main())
