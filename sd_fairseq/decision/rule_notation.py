"""Decision rules as a user writes them: ``NAME:key=value,key=value``; a key left out has its default."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, NamedTuple, Sequence, Union

from sd_fairseq.decision.confidence_rules import MEASURES, build_calm, build_free
from sd_fairseq.decision.rules import DecisionRule, evenly_spaced, from_the_bottom, hierarchical
from sd_fairseq.errors import InputError


class Value(NamedTuple):
    """One value of a rule.

    Args:
        argument: of the rule's builder.
        default: or the default by the number of decoder layers.
        low: least value; of a choice unused.
        choices: of words; () = a number, whole where ``whole``.
        whole: True = no fraction.
    """

    argument: str
    default: Union[float, str, Callable[[int], int]]
    low: float = 0
    choices: Sequence[str] = ()
    whole: bool = True

    @property
    def expected(self) -> str:
        """What may be given, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return f"{'a whole number' if self.whole else 'a number'} from {self.low:g} on"

    def read(self, text: str) -> Any:
        """Reads a value.

        Raises:
            ValueError: it is none of those expected.
        """
        if self.choices:
            return self.choices[self.choices.index(text)]
        value = int(text) if self.whole else float(text)
        if not self.low <= value < math.inf:
            raise ValueError(text)
        return value


class Notation(NamedTuple):
    """A rule's name in use.

    Args:
        build: by (text, decoder layers, values by argument).
        values: by key.
    """

    build: Callable[..., DecisionRule]
    values: Dict[str, Value]


def half(layers: int) -> int:
    """Half of the layers, rounded up, at least the two that have to run."""
    return min(max(-(-layers // 2), 2), layers)


RULES: Dict[str, Notation] = {
    "hsd": Notation(
        hierarchical,
        {
            "min": Value("least", half, 1),
            "over": Value("over", 32, 1),
            "bottom": Value("bottom", 1, 1),
            "top": Value("top", 1, 1),
        },
    ),
    "skipdecode": Notation(
        from_the_bottom,
        {
            "max": Value("most", lambda layers: layers, 1),
            "min": Value("least", half, 1),
            "over": Value("over", 32, 1),
            "bottom": Value("bottom", 1, 0),
        },
    ),
    "uls": Notation(evenly_spaced, {"speedup": Value("speedup", 2.0, 1, whole=False)}),
    "calm": Notation(
        build_calm,
        {
            "confidence": Value("confidence", MEASURES[0], choices=MEASURES),
            "threshold": Value("threshold", 0.9, 0, whole=False),
            "tau": Value("tau", 4.0, 0, whole=False),
            "length": Value("length", 64, 1),
            "first": Value("first", 1, 1),
        },
    ),
    "free": Notation(
        build_free,
        {
            "exit": Value("exit", lambda layers: max(1, layers // 4), 1),
            "threshold": Value("threshold", 0.9, 0, whole=False),
        },
    ),
}
VALID_RULES = ", ".join(
    f"{name}[:{','.join(f'{key}=' for key in notation.values)}]" for name, notation in RULES.items()
)


def is_rule(text: str) -> bool:
    """Tells whether a text names a rule."""
    return text.strip().partition(":")[0] in RULES


def read_rule(text: str) -> Dict[str, Any]:
    """Reads what a user writes, as far as that can be done without the model.

    Args:
        text: ``NAME:key=value,...``.

    Returns:
        The values given, by key.

    Raises:
        InputError: naming what was found and what is valid.
    """
    name, _, rest = text.strip().partition(":")
    if name not in RULES:
        raise InputError(f"rule {text!r}: expected one of {VALID_RULES}")
    known, given = RULES[name].values, {}
    for pair in rest.split(",") if rest else []:
        key, _, value = (piece.strip() for piece in pair.partition("="))
        if key not in known or key in given:
            found = f"{key!r} twice" if key in given else repr(pair.strip())
            raise InputError(f"{text}: found {found}, expected {name}:key=value,... of {', '.join(known)}")
        try:
            given[key] = known[key].read(value)
        except ValueError as error:
            raise InputError(f"{text}: {key} is {value!r}, expected {known[key].expected}") from error
    return given


def build_rule(text: str, layers: int) -> DecisionRule:
    """Builds a rule for a decoder.

    Args:
        text: as :func:`read_rule`'s; "" = the method's own rule.
        layers: of the decoder.

    Raises:
        InputError: as :func:`read_rule`'s, or values that this decoder cannot have.
    """
    if not text:
        return DecisionRule()
    given, name = read_rule(text), text.strip().partition(":")[0]
    values = {}
    for key, value in RULES[name].values.items():
        default = value.default(layers) if callable(value.default) else value.default
        values[key] = given.get(key, default)
    whole = f"{name}:" + ",".join(
        f"{key}={value if isinstance(value, str) else format(value, 'g')}" for key, value in values.items()
    )
    arguments = {RULES[name].values[key].argument: value for key, value in values.items()}
    return RULES[name].build(whole, layers, **arguments)
