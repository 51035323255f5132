"""Make a smaller BART of a trained one by keeping some of its layers, to be fine-tuned like any other ("student").

    python examples/rivals/shrink.py CHECKPOINT OUT --encoder-layers 6 --decoder-layers 3

Source: Shleifer and Rush 2020, "Pre-trained Summarization Distillation" (shrink and fine-tune): a student's layers are
copies of layers of its teacher that are spread evenly, the first and the last among them. The rule here, layer
floor(i (L - 1) / (k - 1) + 1/2), gives their published choices for 12 layers: 0, 2, 4, 7, 9, 11 and 0, 6, 11.
"""

import argparse
import os
import re
import sys
from typing import Any, Dict, List, MutableMapping

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

STACKS = ("encoder", "decoder")


def choose_layers(layers: int, kept: int) -> List[int]:
    """Lists the layers (from 0) of which the student's are copies.

    Args:
        layers: of the teacher.
        kept: of the student.

    Raises:
        ValueError: none is kept, or more than there are.
    """
    if not 1 <= kept <= layers:
        raise ValueError("{} of {} layers cannot be kept, expected 1..{}".format(kept, layers, layers))
    if kept == 1:
        return [0]
    return [(2 * place * (layers - 1) + kept - 1) // (2 * (kept - 1)) for place in range(kept)]


def keep_layers(weights: Dict[str, Any], stack: str, chosen: List[int]) -> Dict[str, Any]:
    """Returns the weights of a model without a stack's other layers, the kept ones numbered anew.

    Args:
        weights: by name, as a checkpoint has them.
        stack: one of :data:`STACKS`.
        chosen: layers (from 0) that are kept.
    """
    found = {}
    for name, value in weights.items():
        layer = re.match(stack + r"\.layers\.(\d+)\.", name)
        if layer is None:
            found[name] = value
        elif int(layer[1]) in chosen:
            place = chosen.index(int(layer[1]))
            found["{}.layers.{}.{}".format(stack, place, name[layer.end() :])] = value
    return found


def shrink(path: str, out: str, wanted: Dict[str, int]) -> None:
    """Writes the student beside its place, then renames.

    Args:
        path: checkpoint of the teacher.
        out: the student's.
        wanted: layers by stack.

    Raises:
        ValueError, OSError: it cannot be used.
    """
    import torch
    from fairseq import checkpoint_utils

    import sd_fairseq.plugin  # noqa: F401  names what a checkpoint of fairseq's may hold
    from sd_fairseq.plugin.guards.preflight import check_checkpoint

    check_checkpoint(path, "CHECKPOINT")
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    settings = state["cfg"]["model"]
    for stack in STACKS:
        name = stack + "_layers"
        layers = settings[name] if isinstance(settings, MutableMapping) else getattr(settings, name)
        chosen = choose_layers(layers, wanted[stack])
        state["model"] = keep_layers(state["model"], stack, chosen)
        if isinstance(settings, MutableMapping):
            settings[name] = wanted[stack]
        else:
            setattr(settings, name, wanted[stack])
    state["args"] = None  # of old checkpoints; fairseq has made cfg of them
    torch.save({**state, "last_optimizer_state": None}, out + ".part")
    os.replace(out + ".part", out)


def main() -> None:
    """Parses the command line and reports bad input in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a trained BART")
    parser.add_argument("out", metavar="OUT", help="the student")
    for stack in STACKS:
        parser.add_argument("--{}-layers".format(stack), type=int, required=True, metavar="N", help="that are kept")
    arguments = parser.parse_args()
    try:
        shrink(
            arguments.checkpoint,
            arguments.out,
            {"encoder": arguments.encoder_layers, "decoder": arguments.decoder_layers},
        )
    except (OSError, ValueError) as error:
        sys.exit("shrink.py: error: {}: {}".format(arguments.checkpoint, error))


if __name__ == "__main__":
    main()
