"""The sizes of a family as command-line options: one table a family says names, places in its shape and help texts."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Dict, Mapping, NamedTuple, Sequence, Union

from fairseq.models import register_model_architecture

from sd_fairseq.plugin.models.options import fill_defaults


class SizeOption(NamedTuple):
    """One option.

    Args:
        name: as it stands among the options.
        field: of the family's shape; "" = it is none of its sizes.
        kind: type of the value, ``bool`` = a flag; or the values to choose from.
        help: one sentence.
    """

    name: str
    field: str
    kind: Union[Callable[[str], Any], Sequence[str]]
    help: str


METAVARS = {"C": "dim", "F": "ffn_dim", "H": "heads", "D": "head_dim", "P": "dropout"}
LONGEST = (
    SizeOption("dropout", "dropout", float, "dropout probability, everywhere where the model has it"),
    SizeOption("max_source_positions", "", int, "longest source, in tokens"),
    SizeOption("max_target_positions", "", int, "longest target, in tokens"),
)


def add_size_options(parser: Any, table: Sequence[SizeOption]) -> None:
    """Adds the options; defaults are the architecture's."""
    letters = {field: letter for letter, field in METAVARS.items()}
    for option in table:
        how: Dict[str, Any] = {"help": option.help}
        if option.kind is bool:
            how["action"] = "store_true"
        elif callable(option.kind):
            how.update(type=option.kind, metavar=letters.get(option.field, "N"))
        else:
            how["choices"] = option.kind
        parser.add_argument("--" + option.name.replace("_", "-"), **how)


def collect_sizes(args: Any, table: Sequence[SizeOption]) -> Dict[str, Any]:
    """Returns the options that are sizes, under the names of the family's shape."""
    return {option.field: getattr(args, option.name) for option in table if option.field}


def fill_sizes(args: Any, table: Sequence[SizeOption], shape: Any, others: Mapping[str, Any]) -> None:
    """Gives every option that ``args`` lacks a value, as fairseq's architectures do it.

    Args:
        args: the options; changed in place.
        table: the family's.
        shape: of the architecture.
        others: option -> value, before the shape's.
    """
    fill_defaults(args)
    for option in table:
        if getattr(args, option.name, None) is None:
            value = others[option.name] if option.name in others else getattr(shape, option.field)
            setattr(args, option.name, value)


def register_sizes(model: str, sizes: Mapping[str, Any], default: str, fill: Callable[..., None]) -> None:
    """Registers an architecture a size, the default's under the model's own name.

    Args:
        model: a registered model.
        sizes: name -> shape.
        default: one of the names.
        fill: called with the options and a shape.
    """
    for name, shape in sizes.items():
        arch = model if name == default else f"{model}_{name}"
        register_model_architecture(model, arch)(partial(fill, shape=shape))
