"""Keep of a checkpoint what a row of the grid starts from: weights in half precision, no optimizer, no paths.

    python examples/tradeoff/slim.py CHECKPOINT OUT [--max-source-positions 512]

A base of 12 million parameters takes 24 MB. More source positions are fresh ones, drawn with the spread of those that
are there; a model must be trained before it makes sense of them.
"""

import argparse
import os
import sys
from typing import Any, MutableMapping

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import torch  # noqa: E402

POSITIONS = "encoder.embed_positions.weight"


def lengthen(state: dict, positions: int) -> None:
    """Gives the encoder of a checkpoint learned embeddings of more positions, in place.

    Raises:
        ValueError: it has no learned positions, or more than are wanted.
    """
    weight = state["model"].get(POSITIONS)
    if weight is None:
        raise ValueError("it has no learned source positions")
    before = state["cfg"]["task"]["max_source_positions"]
    if positions < before:
        raise ValueError("it has {} source positions, {} wanted".format(before, positions))
    generator = torch.Generator().manual_seed(positions)
    fresh = torch.randn((positions - before, weight.size(1)), generator=generator) * weight.float().std()
    state["model"][POSITIONS] = torch.cat([weight, fresh.to(weight)])  # fairseq's two special rows stand first
    for part in ("task", "model"):
        settings = state["cfg"][part]
        if isinstance(settings, argparse.Namespace):
            settings.max_source_positions = positions
        else:
            settings["max_source_positions"] = positions


def forget_places(settings: Any) -> None:
    """Cuts absolute paths in a checkpoint's settings to their last part, in place: they are another machine's."""
    if settings is None:
        return
    values = vars(settings) if isinstance(settings, argparse.Namespace) else settings
    for name, value in list(values.items()):
        if isinstance(value, (MutableMapping, argparse.Namespace)):  # omegaconf's are mappings, too
            forget_places(value)
        elif isinstance(value, str) and os.path.isabs(value):
            values[name] = os.path.basename(value)


def slim(path: str, out: str, positions: int) -> None:
    """Writes the slim checkpoint beside its place, then renames.

    Raises:
        ValueError, OSError: the checkpoint cannot be used.
    """
    from fairseq import checkpoint_utils

    import sd_fairseq  # noqa: F401  names what a checkpoint of fairseq's may hold
    from sd_fairseq.plugin.preflight import check_checkpoint

    check_checkpoint(path, "CHECKPOINT")
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    if positions:
        lengthen(state, positions)
    forget_places(state["cfg"])
    halves: dict = {}  # tied weights stay one tensor, and are written once
    weights = {}
    for name, value in state["model"].items():
        key = (value.data_ptr(), value.shape)
        weights[name] = halves.setdefault(key, value.half()) if value.is_floating_point() else value
    torch.save({**state, "model": weights, "last_optimizer_state": None}, out + ".part")
    os.replace(out + ".part", out)


def main() -> None:
    """Parses the command line and reports bad input in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--max-source-positions", type=int, default=0, help="default: as many as there are")
    arguments = parser.parse_args()
    try:
        slim(arguments.checkpoint, arguments.out, arguments.max_source_positions)
    except (OSError, ValueError) as error:
        sys.exit("slim.py: error: {}: {}".format(arguments.checkpoint, error))


if __name__ == "__main__":
    main()
