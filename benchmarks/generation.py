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
        batch, source, target, beam: sizes.
        size: of the model.
        precisions: which of :data:`PRECISIONS` to measure.
    """

    def __init__(self, models: "Models", batch: int, source: int, target: int, beam: int):
        self.models, self.batch, self.source, self.target, self.beam = models, batch, source, target, beam
        self.net_input = measure.random_sources(batch, source, models.dictionary)

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

    def bart(self, precision: str) -> torch.nn.Module:
        """fairseq's BART."""
        if "bart" + precision not in self.built:
            model = measure.build_model("bart_base", self.dictionary, self.size)
            model.load_state_dict(self.switchable.state_dict())
            self.built["bart" + precision] = model.bfloat16() if precision == "bf16" else model
        return self.built["bart" + precision]

    def fast(self, precision: str) -> FastModel:
        """The fast model; one for all settings, so that weights are packed once."""
        if "fast" + precision not in self.built:
            self.built["fast" + precision] = FastModel(self.switchable, PRECISIONS[precision])
        return self.built["fast" + precision]


DENSE = {"attention": 0.0, "ffn": 0.0, "token": 0.0}


def compare(setting: Setting, names: List[str], rounds: int, folder: str) -> List[Dict[str, Any]]:
    """Measures everything at one setting, in turns."""
    candidates = {
        "fairseq fp32": setting.fairseq("fp32"),
        "fairseq bf16": setting.fairseq("bf16"),
        "ours fp32": setting.fast("fp32", DENSE),
        "ours bf16": setting.fast("bf16", DENSE),
        "ours int8": setting.fast("int8", DENSE),
        "ours fp32 at the paper's rates": setting.fast("fp32", measure.PAPER_RATES),
        "ours bf16 at the paper's rates": setting.fast("bf16", measure.PAPER_RATES),
    }
    candidates.update(peers.build(names, setting, folder))
    seconds = measure.take_turns(candidates, rounds)
    shape = {"batch": setting.batch, "source": setting.source, "target": setting.target, "beam": setting.beam}
    paper = {"flops_ratio": setting.flops(measure.PAPER_RATES), **shape}
    pairs = [
        ("dense-fp32-vs-fairseq", "ours fp32", "fairseq fp32", shape),
        ("dense-bf16-vs-fairseq", "ours bf16", "fairseq bf16", shape),
        ("dense-int8-vs-fairseq-fp32", "ours int8", "fairseq fp32", shape),
        ("paper-rates-fp32-vs-fairseq-dense", "ours fp32 at the paper's rates", "fairseq fp32", paper),
        ("paper-rates-fp32-vs-ours-dense", "ours fp32 at the paper's rates", "ours fp32", paper),
        ("paper-rates-bf16-vs-fairseq-dense", "ours bf16 at the paper's rates", "fairseq bf16", paper),
        ("paper-rates-bf16-vs-ours-dense", "ours bf16 at the paper's rates", "ours bf16", paper),
    ]
    for name in candidates:
        if name.startswith(("transformers", "ctranslate2")):
            case = name.replace(" ", "-")
            pairs.append((f"dense-fp32-vs-{case}", "ours fp32", name, shape))
            pairs.append((f"dense-bf16-vs-{case}", "ours bf16", name, shape))
            pairs.append((f"paper-rates-bf16-vs-{case}", "ours bf16 at the paper's rates", name, paper))
    return [measure.row(case, seconds[ours], peer, seconds[peer], **more) for case, ours, peer, more in pairs]


def main() -> None:
    """Measures and writes ``generation.json``."""
    parser = measure.arguments(__doc__.splitlines()[0], "generation")
    parser.add_argument("--batch-sizes", default="1")
    parser.add_argument("--source-lengths", default="800")
    parser.add_argument("--target-length", type=int, default=64)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument(
        "--peers", default="transformers,ctranslate2", help="beside fairseq; left out where not installed"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models, rows = Models(args.size), []
    sizes = itertools.product(args.batch_sizes.split(","), args.source_lengths.split(","))
    with tempfile.TemporaryDirectory() as folder:
        for batch, source in sizes:
            setting = Setting(models, int(batch), int(source), args.target_length, args.beam)
            rows += compare(setting, args.peers.split(","), args.rounds, folder)
            measure.write(args.output, rows)


if __name__ == "__main__":
    main()
