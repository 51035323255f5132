"""Keep of a checkpoint what a row of the grid starts from: weights in half precision, no optimizer, no paths.

    python examples/tradeoff/slim.py CHECKPOINT OUT [--max-source-positions 512] [--max-target-positions 256]

A base of 12 million parameters takes 24 MB. More positions are fresh ones, drawn with the spread of those that
are there; a model must be trained before it makes sense of them.
"""

import argparse
import hashlib
import os
import sys
from typing import Any, Dict, MutableMapping

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

STACKS = {"source": "encoder", "target": "decoder"}


def lengthen(state: dict, side: str, positions: int) -> None:
    """Gives one stack of a checkpoint learned embeddings of more positions, in place.

    Args:
        state: fairseq's checkpoint.
        side: "source" or "target".
        positions: wanted number.

    Raises:
        ValueError: it has no learned positions, or more than are wanted.
    """
    name, limit = "{}.embed_positions.weight".format(STACKS[side]), "max_{}_positions".format(side)
    weight = state["model"].get(name)
    if weight is None:
        raise ValueError("it has no learned {} positions".format(side))
    before = state["cfg"]["task"][limit]
    if positions < before:
        raise ValueError("it has {} {} positions, {} wanted".format(before, side, positions))
    generator = torch.Generator().manual_seed(positions)
    fresh = torch.randn((positions - before, weight.size(1)), generator=generator) * weight.float().std()
    state["model"][name] = torch.cat([weight, fresh.to(weight)])  # fairseq's two special rows stand first
    for part in ("task", "model"):
        settings = state["cfg"][part]
        if isinstance(settings, argparse.Namespace):
            setattr(settings, limit, positions)
        else:
            settings[limit] = positions


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


def slim(path: str, out: str, positions: Dict[str, int]) -> None:
    """Writes the slim checkpoint beside its place, then renames.

    Args:
        path: of the checkpoint.
        out: of the slim one.
        positions: wanted numbers by side ("source", "target"); 0 = as many as there are.

    Raises:
        ValueError, OSError: the checkpoint cannot be used.
    """
    from fairseq import checkpoint_utils

    import sd_fairseq.plugin  # noqa: F401  names what a checkpoint of fairseq's may hold
    from sd_fairseq.plugin.guards.preflight import check_checkpoint

    check_checkpoint(path, "CHECKPOINT")
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    for side, number in positions.items():
        if number:
            lengthen(state, side, number)
    state["args"] = None  # of old checkpoints; fairseq has made cfg of them
    forget_places(state["cfg"])
    if OmegaConf.is_config(state["cfg"]):  # as fairseq saves them
        state["cfg"] = OmegaConf.to_container(state["cfg"], resolve=True)
    halves: dict = {}  # tied weights become one tensor (a training with --fp16 writes copies), and are written once
    weights = {}
    for name, value in state["model"].items():
        if value.is_floating_point():
            half = value.half()
            value = halves.setdefault((half.shape, hashlib.sha1(half.numpy().tobytes()).digest()), half)
        weights[name] = value
    torch.save({**state, "model": weights, "last_optimizer_state": None}, out + ".part")
    os.replace(out + ".part", out)


def main() -> None:
    """Parses the command line and reports bad input in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("out", metavar="OUT")
    for side in STACKS:
        parser.add_argument(
            "--max-{}-positions".format(side), type=int, default=0, help="default: as many as there are"
        )
    arguments = parser.parse_args()
    try:
        positions = {side: getattr(arguments, "max_{}_positions".format(side)) for side in STACKS}
        slim(arguments.checkpoint, arguments.out, positions)
    except (OSError, ValueError) as error:
        sys.exit("slim.py: error: {}: {}".format(arguments.checkpoint, error))


if __name__ == "__main__":
    main()
