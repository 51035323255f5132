"""What generates with fairseq's model code, each in a worker of its own: the fast generator, and fairseq's.

All weights come from one file, a fairseq checkpoint that the candidate ``weights`` writes from seed 1. Every candidate
hashes what its model holds after loading, under fairseq's names and in the precision that it computes from.
"""

import os
from typing import Any, Dict, List, Optional

import accelerator
import measure
import torch
import weights
from fairseq.sequence_generator import SequenceGenerator
from torch.overrides import TorchFunctionMode
from weights import checksum

from sd_fairseq.cost.path_flops import Lengths, relative_flops
from sd_fairseq.plugin.generation.fast_model import FastModel
from sd_fairseq.plugin.models.switchable_encoder import PathRequest
from sd_fairseq.plugin.repairs.ngram_blocker import NGramBlocker

NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHORT = 4  # target tokens of the untimed run before each timed one


class WithoutInitialValues(TorchFunctionMode):
    """Lets modules be built without drawing random values that a checkpoint replaces anyway."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leaves out what fills a tensor with random values."""
        if getattr(function, "__name__", "") in ("normal_", "uniform_", "xavier_uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def load_model(arch: str, request: Dict[str, Any], **options: Any) -> Any:
    """Builds a model and copies the file's weights into memory of its own, as fairseq would."""
    with WithoutInitialValues():
        model = measure.build_model(arch, measure.build_dictionary(), request["size"], **options)
    model.load_state_dict(weights.read(request["weights"]), strict=True)
    return model


class Weights:
    """Writes the checkpoint that every candidate reads, with the dictionaries beside it; takes no turns.

    Args:
        request: ``weights`` = the file, ``size``.
    """

    def __init__(self, request: Dict[str, Any]):
        dictionary, path = measure.build_dictionary(), request["weights"]
        model = measure.build_model("switchable_bart_base", dictionary, request["size"], sd_policy="dense")
        for side in ("source", "target"):
            dictionary.save(os.path.join(os.path.dirname(path), f"dict.{side}.txt"))
        args = measure.model_arguments("bart_base", request["size"], left_pad_source=True, left_pad_target=False)
        values = dict(model.state_dict())
        torch.save({"args": args, "cfg": None, "model": values}, path)
        self.facts = {"checksums": {name: checksum(values, dtype) for name, dtype in DTYPES.items()}}


class Search:
    """fairseq's beam search over one of the models.

    Args:
        request: ``threads``, ``precision``, ``size``, ``weights``, ``device``.
    """

    arch = ""
    options: Dict[str, Any] = {}

    def __init__(self, request: Dict[str, Any]):
        torch.set_num_threads(request["threads"])
        self.request, self.dictionary = request, measure.build_dictionary()
        self.model = load_model(self.arch, request, **self.options)
        kind = request["precision"] if request["precision"] in DTYPES else "fp32"  # what 8-bit weights are made from
        self.ensemble = self.build_ensemble()
        self.facts = {"checksum": checksum(dict(self.model.state_dict()), DTYPES[kind]), "kind": kind}
        self.model.to(request["device"])

    def build_ensemble(self) -> Any:
        """Returns what the generator drives."""
        raise NotImplementedError

    def prepare(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        """Takes a batch.

        Args:
            batch: ``tokens`` [B, S], ``target`` tokens to generate, ``beam``.
        """
        tokens = torch.tensor(batch["tokens"], device=self.request["device"])
        lengths = torch.full((tokens.size(0),), tokens.size(1), device=tokens.device)
        self.batch = batch
        self.net_input: Dict[str, Any] = {"src_tokens": tokens, "src_lengths": lengths}
        self.generator, self.short = self._generator(batch["target"]), self._generator(SHORT)
        return {}

    def _generator(self, target: int) -> SequenceGenerator:
        length = target - 1  # the end of sentence is the last one
        generator = SequenceGenerator(
            self.ensemble, self.dictionary, self.batch["beam"], min_len=length, max_len_b=length, len_penalty=2.0
        )
        generator.repeat_ngram_blocker = NGramBlocker(3)  # fairseq's own blocker is broken; the same for all
        return generator

    def warm_up(self) -> None:
        """A short run."""
        self.short.generate([self.model], {"net_input": dict(self.net_input)})

    def run(self) -> Any:
        """Generates."""
        found = self.generator.generate([self.model], {"net_input": dict(self.net_input)})
        accelerator.synchronize()
        return found

    def peak_memory(self) -> Optional[float]:
        """The accelerator's peak memory in GB, where the model is on one."""
        return accelerator.peak_memory(self.request["device"])

    def result(self, found: Any) -> List[List[int]]:
        """The best hypothesis of every sentence, without its end."""
        return [one[0]["tokens"].tolist()[:-1] for one in found]


class Ours(Search):
    """The fast generator along decisions of given rates: ``request["rates"]``."""

    arch = "switchable_bart_base"
    options = {"sd_policy": "dense"}

    def build_ensemble(self) -> FastModel:
        """Returns the fast model. It checks its packed copy against the model, which therefore stays in memory."""
        return FastModel(self.model, NAMES[self.request["precision"]])

    def prepare(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        """Takes a batch; answers the FLOPs of its path relative to the dense one."""
        super().prepare(batch)
        space, size = self.model.space, len(batch["tokens"])
        decisions = measure.decisions_at(space, size, **self.request["rates"])
        self.net_input["path"] = PathRequest(decisions=decisions.to(self.net_input["src_tokens"].device))
        lengths = Lengths(self.net_input["src_lengths"].cpu(), torch.full((size,), batch["target"]), batch["beam"])
        ratio = relative_flops("generation", self.model.shape, space, decisions, lengths).mean()
        return {"flops_ratio": round(float(ratio), 4)}


class Fairseq(Search):
    """fairseq's generator with fairseq's BART."""

    arch = "bart_base"

    def build_ensemble(self) -> Any:
        """Returns the model in its precision."""
        self.model = self.model.to(DTYPES[self.request["precision"]])
        return [self.model]


BUILDERS = {"weights": Weights, "ours": Ours, "fairseq": Fairseq}
