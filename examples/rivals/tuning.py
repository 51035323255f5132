"""What each rival may choose among, and how: on valid, never on what is reported."""

from typing import Any, Dict, List, Sequence, Tuple

NEAR = 0.02  # relative FLOPs; candidates that are so near to the target are compared by their quality

# A rule's name -> options of the search that it needs, and its candidates. Each list is the rival's whole range.
TUNED: Dict[str, Tuple[Tuple[str, ...], Tuple[str, ...]]] = {
    "hsd": ((), tuple("hsd:min={},over={}".format(least, over) for least in (2, 3) for over in (1, 4, 8, 16))),
    "skipdecode": (
        (),
        (
            *("skipdecode:max=6,min={},over={}".format(least, over) for least in (2, 3) for over in (4, 8, 16)),
            *("skipdecode:max=3,min=2,over={}".format(over) for over in (4, 8)),
        ),
    ),
    "uls": ((), tuple("uls:speedup={}".format(speedup) for speedup in (1.2, 1.5, 2, 3))),
    "calm": (
        (),
        (
            *("calm:confidence=gap,threshold={}".format(one) for one in (0.1, 0.2, 0.4, 0.6, 0.8, 0.9)),
            *("calm:confidence=max,threshold={}".format(one) for one in (0.3, 0.5, 0.7, 0.85)),
            *("calm:confidence=cosine,threshold={}".format(one) for one in (0.8, 0.85, 0.9, 0.95)),
        ),
    ),
    "free": (
        ("--beam", "1"),
        tuple("free:exit=1,threshold={}".format(one) for one in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)),
    ),
}


def choose(found: Sequence[Dict[str, Any]], target: float) -> Dict[str, Any]:
    """Chooses a candidate: of those near the target the best one, else the nearest.

    Args:
        found: of every candidate ``rule``, ``flops_generation`` (relative) and ``rougeL`` on valid.
        target: relative FLOPs aimed at.

    Returns:
        The chosen one; of equal ones the first.
    """

    def gap(one: Dict[str, Any]) -> float:
        return round(abs(one["flops_generation"] - target), 6)

    near = [one for one in found if gap(one) <= NEAR]
    return max(near, key=lambda one: one["rougeL"]) if near else min(found, key=gap)


def candidates(name: str, layers: int) -> List[str]:
    """Lists a rule's candidates that a decoder of so many layers can have.

    Args:
        name: of :data:`TUNED`.
        layers: of the decoder.

    Raises:
        ValueError: an unknown name, or none is left.
    """
    from sd_fairseq.decision.rule_notation import build_rule

    if name not in TUNED:
        raise ValueError("rule {!r} is none of {}".format(name, ", ".join(TUNED)))
    possible = []
    for text in TUNED[name][1]:
        try:
            build_rule(text, layers)
        except ValueError:
            continue
        possible.append(text)
    if not possible:
        raise ValueError("rule {!r}: a decoder of {} layers can have none of its candidates".format(name, layers))
    return possible
