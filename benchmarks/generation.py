#!/usr/bin/env python3
"""Wall-clock of generation: the fast generator against fairseq, Hugging Face transformers and CTranslate2.

BART's shape with random weights, the same in all; the number of target tokens is forced, so time depends on the path
only. transformers and CTranslate2 are measured where they are installed.

    python benchmarks/generation.py                          batch 1, source 800, target 64, beam 4
    python benchmarks/generation.py --batch-sizes 1,4,16 --source-lengths 128,512,1024 --peers fairseq
"""

import itertools
import tempfile
from typing import Any, Callable, Dict, List

import measure
import peers
import torch
from fairseq.sequence_generator import SequenceGenerator

from sd_fairseq.cost.path_flops import Lengths, relative_flops
from sd_fairseq.plugin.generation.fast_model import FastModel
from sd_fairseq.plugin.generation.ngram_blocker import NGramBlocker
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}


class Setting:
    """One shape of batch, and the models that decode it.

    Args:
        models: the models.
        batch, source, target, beam: sizes.
    """

    def __init__(self, models: "Models", batch: int, source: int, target: int, beam: int):
        self.models, self.batch, self.source, self.target, self.beam = models, batch, source, target, beam
        self.net_input = measure.random_sources(batch, source, models.dictionary)

    def of_target(self, target: int) -> "Setting":
        """The same with another number of target tokens."""
        return Setting(self.models, self.batch, self.source, target, self.beam)

    def fairseq(self, precision: str) -> Callable[[], Any]:
        """fairseq's generator with fairseq's BART. It blocks n-grams, as ours does: fairseq's own blocker is broken."""
        return self._search([self.models.bart(precision)], self.models.bart(precision), {})

    def fast(self, precision: str, rates: Dict[str, float]) -> Callable[[], Any]:
        """The fast generator along decisions of the given rates."""
        path = PathRequest(decisions=measure.decisions_at(self.models.switchable.space, self.batch, **rates))
        return self._search(self.models.fast(precision), self.models.switchable, {"path": path})

    def _search(self, ensemble: Any, model: Any, more: Dict[str, Any]) -> Callable[[], Any]:
        length = self.target - 1  # the end of sentence is the last one
        generator = SequenceGenerator(
            ensemble, self.models.dictionary, self.beam, min_len=length, max_len_b=length, len_penalty=2.0
        )
        generator.repeat_ngram_blocker = NGramBlocker(3)
        return lambda: generator.generate([model], {"net_input": {**self.net_input, **more}})

    def flops(self, rates: Dict[str, float]) -> float:
        """FLOPs of the path relative to the dense one."""
        space, shape = self.models.switchable.space, self.models.switchable.shape
        decisions = measure.decisions_at(space, self.batch, **rates)
        lengths = Lengths(self.net_input["src_lengths"], torch.full((self.batch,), self.target), self.beam)
        return round(float(relative_flops("generation", shape, space, decisions, lengths).mean()), 4)


class Models:
    """The models of one size, all with the same weights; built when first asked for."""

    def __init__(self, size: str):
        self.size, self.dictionary = size, measure.build_dictionary()
        self.switchable = measure.build_model("switchable_bart_base", self.dictionary, size, sd_policy="dense")
        self.built: Dict[str, Any] = {}
        self.precision = ""

    def keep_for(self, precision: str) -> None:
        """Drops what another precision needed."""
        if precision != self.precision:
            self.precision = precision
            self.built.clear()

    def weights(self) -> Dict[str, torch.Tensor]:
        """The weights, by fairseq's names."""
        return dict(self.switchable.state_dict())

    def bart(self, precision: str) -> torch.nn.Module:
        """fairseq's BART."""
        if "bart" + precision not in self.built:
            model = measure.build_model("bart_base", self.dictionary, self.size)
            model.load_state_dict(self.weights())
            self.built["bart" + precision] = model.bfloat16() if precision == "bf16" else model
        return self.built["bart" + precision]

    def fast(self, precision: str) -> FastModel:
        """The fast model; one for all settings, so that weights are packed once."""
        if "fast" + precision not in self.built:
            self.built["fast" + precision] = FastModel(self.switchable, PRECISIONS[precision])
        return self.built["fast" + precision]


SHORT = 4  # target tokens of the untimed run before each timed one
DENSE = {"attention": 0.0, "ffn": 0.0, "token": 0.0}
# Ours, and what it is compared with; one group after the other, so that few models are in memory at once.
GROUPS = {
    "fp32": ["fairseq fp32", "transformers fp32", "ctranslate2 fp32"],
    "bf16": ["fairseq bf16", "transformers bf16", "ctranslate2 int8"],
    "int8": ["fairseq fp32", "ctranslate2 int8"],
}


def build_candidates(
    setting: Setting, precision: str, peer_names: List[str], folder: str
) -> Dict[str, Callable[[], Any]]:
    """Everything that one precision of ours is measured against, and ours."""
    candidates = {
        f"ours {precision}": setting.fast(precision, DENSE),
        f"ours {precision} at the paper's rates": setting.fast(precision, measure.PAPER_RATES),
    }
    for name in GROUPS[precision]:
        software, its_precision = name.split()
        if software == "fairseq":
            candidates[name] = setting.fairseq(its_precision)
        elif software in peer_names:
            candidates.update(peers.build(software, its_precision, setting, folder))
    return candidates


def compare(setting: Setting, precision: str, peer_names: List[str], rounds: int, folder: str) -> List[Dict[str, Any]]:
    """Measures one precision of ours and its peers at one setting, in turns."""
    ours, skipping = f"ours {precision}", f"ours {precision} at the paper's rates"
    candidates = build_candidates(setting, precision, peer_names, folder)
    short = build_candidates(setting.of_target(SHORT), precision, peer_names, folder)
    seconds = measure.take_turns(candidates, rounds, short)
    shape = {"batch": setting.batch, "source": setting.source, "target": setting.target, "beam": setting.beam}
    paper = {"flops_ratio": setting.flops(measure.PAPER_RATES), **shape}
    rows = [measure.row(f"paper-rates-{precision}-vs-ours-dense", seconds[skipping], ours, seconds[ours], **paper)]
    for name in [one for one in GROUPS[precision] if one in candidates]:
        software, its_precision = name.split()
        peer = software if its_precision == precision and software == "fairseq" else name.replace(" ", "-")
        dense = "fairseq-dense" if peer == "fairseq" else peer
        rows.append(measure.row(f"dense-{precision}-vs-{peer}", seconds[ours], name, seconds[name], **shape))
        rows.append(measure.row(f"paper-rates-{precision}-vs-{dense}", seconds[skipping], name, seconds[name], **paper))
    return rows


def main() -> None:
    """Measures and writes ``generation.json``."""
    parser = measure.arguments(__doc__.splitlines()[0], "generation")
    parser.add_argument("--batch-sizes", default="1")
    parser.add_argument("--source-lengths", default="800")
    parser.add_argument("--precisions", default="fp32,bf16", help="of ours: " + ", ".join(GROUPS))
    parser.add_argument("--target-length", type=int, default=64)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument(
        "--peers", default="transformers,ctranslate2", help="beside fairseq; left out where not installed"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models, rows = Models(args.size), []
    sizes = list(itertools.product(args.batch_sizes.split(","), args.source_lengths.split(",")))
    with tempfile.TemporaryDirectory() as folder:
        for precision, (batch, source) in itertools.product(args.precisions.split(","), sizes):
            models.keep_for(precision)
            setting = Setting(models, int(batch), int(source), args.target_length, args.beam)
            rows += compare(setting, precision, args.peers.split(","), args.rounds, folder)
            measure.write(args.output, rows)


if __name__ == "__main__":
    main()
