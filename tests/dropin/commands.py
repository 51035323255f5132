"""The checkpoints that the drop-in tests share, each made once by fairseq's own commands, and what commands print."""

import json
import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from dropin.workers import SWITCHABLE, TASK, TRAINING, build_data, load, run, start

ONE_UPDATE = ["--cpu", "--max-update", "1", "--batch-size", "15", "--disable-validation"]
PLAIN = ["--arch", "bart_base", "--criterion", "label_smoothed_cross_entropy"]
FRESH_START = ["--reset-optimizer", "--reset-dataloader", "--reset-meters", "--reset-lr-scheduler"]
SEARCH = ["--max-len-b", "9", "--batch-size", "5", "--cpu", "--no-progress-bar", "--num-workers", "0"]
DENSE = ["--model-overrides", "{'arch': 'switchable_bart_base', 'sd_policy': 'dense'}"]
OWN = ["--sd-generator", "fairseq"]  # a plain checkpoint stays fairseq's own model
AS_SWITCHABLE = ["--model-overrides", "{'arch': 'switchable_bart_base'}"]


class Hypothesis(NamedTuple):
    """What fairseq-generate prints about one hypothesis.

    Args:
        score: of the whole, base 2.
        words: of the H- line.
        scores: of every word, base 2.
        alignment: the A- line's items, if any.
    """

    score: float
    words: str
    scores: Tuple[float, ...]
    alignment: Tuple[str, ...] = ()


def read_hypotheses(output: str) -> Dict[int, List[Hypothesis]]:
    """Returns the hypotheses of every sentence, by its number."""
    found: Dict[int, List[Hypothesis]] = {}
    for line in output.splitlines():
        match = re.match(r"([HPA])-(\d+)\t(.*)", line)
        if match is None:
            continue
        kind, text = match.group(1), match.group(3)
        hypotheses = found.setdefault(int(match.group(2)), [])
        if kind == "H":
            score, _, words = text.partition("\t")
            hypotheses.append(Hypothesis(float(score), words, ()))
        elif kind == "P":
            hypotheses[-1] = hypotheses[-1]._replace(scores=tuple(map(float, text.split())))
        else:
            hypotheses[-1] = hypotheses[-1]._replace(alignment=tuple(text.split()))
    return found


def assert_same_hypotheses(left: Dict[int, List[Hypothesis]], right: Dict[int, List[Hypothesis]]) -> None:
    """Asserts the same words for every sentence, and scores that differ by rounding only."""
    assert left.keys() == right.keys() and left
    for number, hypotheses in left.items():
        assert [one.words for one in hypotheses] == [one.words for one in right[number]], number
        for one, other in zip(hypotheses, right[number]):
            assert abs(one.score - other.score) < 1e-3, number
            assert len(one.scores) == len(other.scores), number
            assert max(abs(a - b) for a, b in zip(one.scores, other.scores)) < 1e-3, number


class Zoo:
    """A folder of binarised data and checkpoints.

    Args:
        folder: where everything goes.
        data: binarised data with train, valid and test.
    """

    def __init__(self, folder: Path, data: Path):
        self.folder = folder
        self.data = folder / "data-bin"
        shutil.copytree(str(data), str(self.data))
        self.texts = data.parent
        self.number = 0
        self.training = [*TRAINING, "--cpu"]

    def command(self, name: str, *arguments: Any, data: Optional[Path] = None) -> str:
        """Runs a fairseq command, which must end well; returns what it printed."""
        return run(name, [data or self.data, *arguments], self._log(name))

    def refused(self, name: str, *arguments: Any) -> str:
        """Runs a fairseq command, which must end with one error line of ours; returns that line."""
        log = self._log(name)
        process = start(name, [str(one) for one in (self.data, *arguments)], log)
        process.join(120)
        output = log.read_text(encoding="utf-8", errors="replace")
        errors = [line for line in output.splitlines() if line.startswith("sd_fairseq: error: ")]
        assert process.exitcode not in (0, None) and len(errors) == 1, output[-3000:]
        assert "Traceback" not in output, output[-3000:]
        return errors[0]

    def _log(self, name: str) -> Path:
        self.number += 1
        return self.folder / f"{self.number}.{name}.log"

    def train(self, name: str, *arguments: Any) -> Path:
        """Trains one update (or as many as the arguments say) into a folder of that name; returns the checkpoint."""
        save = ["--save-dir", self.folder / name]
        self.last_output = self.command("train", *TASK, *TRAINING, *ONE_UPDATE, *save, *arguments)
        return self.folder / name / "checkpoint_last.pt"

    def generate(self, path: Any, *options: Any, task: Any = TASK) -> Dict[int, List[Hypothesis]]:
        """Generates the test split."""
        self.last_output = self.command("generate", *task, *SEARCH, "--path", path, *options)
        return read_hypotheses(self.last_output)

    @property
    @lru_cache(maxsize=None)  # noqa: B019  # one instance, as long as the session
    def plain(self) -> Path:
        """A plain BART checkpoint whose hypotheses differ from sentence to sentence."""
        path = self.train("plain", *PLAIN)
        return self.rewritten(path, "plain.pt", louden)

    @property
    @lru_cache(maxsize=None)  # noqa: B019
    def mixed(self) -> Path:
        """A switchable checkpoint of the same backbone whose deployed paths differ from sentence to sentence."""
        path = self.train("mixed", *SWITCHABLE, "--restore-file", self.plain, *FRESH_START)
        backbone = load(self.plain)["model"]

        def mix(state: Dict[str, Any]) -> None:
            state["model"].update(backbone)
            undecide(state["model"])

        return self.rewritten(path, "mixed.pt", mix)

    @property
    @lru_cache(maxsize=None)  # noqa: B019
    def any_budget(self) -> Path:
        """A checkpoint for budgets of 0.3 to 0.9 that keeps nothing at the smallest and everything at the largest."""
        more = ["--sd-budget-range", "0.3,0.9", "--sd-mode", "budget"]
        path = self.train("any-budget", *SWITCHABLE, *more, "--restore-file", self.plain, *FRESH_START)

        def spread(state: Dict[str, Any]) -> None:
            state["model"]["encoder.policy.heads.weight"].zero_()
            bias = state["model"]["encoder.policy.heads.bias"]
            bias.copy_(torch.tensor([-5.0, 5.0, 5.0, 5.0]).repeat_interleave(len(bias) // 4))

        return self.rewritten(path, "any-budget.pt", spread)

    @property
    @lru_cache(maxsize=None)  # noqa: B019
    def language_model(self) -> Path:
        """A language model over the same words."""
        pairs = ["--trainpref", self.texts / "train.target", "--validpref", self.texts / "valid.target"]
        arguments = ["--only-source", "--srcdict", self.data / "dict.target.txt", "--destdir", self.data, *pairs]
        run("preprocess", arguments, self._log("preprocess"))
        size = [f"--decoder-{name}" for name in ("layers", "embed-dim", "ffn-embed-dim", "attention-heads")]
        options = [one for pair in zip(size, ("2", "16", "32", "2")) for one in pair]
        options += ["--task", "language_modeling", "--arch", "transformer_lm", "--optimizer", "adam", "--lr", "1e-3"]
        folder = self.folder / "language-model"
        more = ["--tokens-per-sample", "32", "--share-decoder-input-output-embed", "--num-workers", "0"]
        self.command("train", *options, *more, *ONE_UPDATE, "--no-epoch-checkpoints", "--save-dir", folder)
        return self.rewritten(folder / "checkpoint_last.pt", "language_model.pt", louden)

    @property
    @lru_cache(maxsize=None)  # noqa: B019
    def raw_data(self) -> Path:
        """The test split as text, which replacing unknown words needs."""
        folder = self.folder / "raw"
        folder.mkdir()
        for side in ("source", "target"):
            shutil.copy(str(self.texts / f"test.{side}"), str(folder / f"test.source-target.{side}"))
            shutil.copy(str(self.data / f"dict.{side}.txt"), str(folder))
        return folder

    def rewritten(self, path: Path, name: str, change: Any) -> Path:
        """Writes a changed copy of a checkpoint; returns its path."""
        state = load(path)
        state = change(state) or state
        torch.save(state, str(self.folder / name))
        return self.folder / name


def louden(state: Dict[str, Any]) -> None:
    """Gives a checkpoint weights large enough that every sub-layer shows in the output, and ends that come."""
    generator = torch.Generator().manual_seed(3)
    model = state["model"]
    shared = {}
    for key in sorted(model):
        value = model[key]
        if value.dim() > 1 and value.data_ptr() not in shared:
            shared[value.data_ptr()] = torch.empty_like(value).normal_(std=0.3, generator=generator)
        model[key] = shared.get(value.data_ptr(), value)
    model["decoder.embed_tokens.weight"][2] *= 2.5  # the end of a sentence


def undecide(model: Dict[str, torch.Tensor]) -> None:
    """Gives a policy logits around 0 that depend on the input."""
    generator = torch.Generator().manual_seed(5)
    for key, value in model.items():
        if key.startswith("encoder.policy.") and key.endswith(("heads.weight", "hidden.bias")):
            model[key] = torch.empty_like(value).normal_(generator=generator)
        elif key.startswith("encoder.policy.") and key.endswith("heads.bias"):
            model[key] = torch.zeros_like(value)


def make_zoo(base: Path, folder: Path) -> Zoo:
    """Makes the zoo over the data that all drop-in tests share."""
    return Zoo(folder, build_data(base / "dropin-data"))


def hydra_train(zoo: Zoo, name: str, model: str, task: str, **more: Any) -> Path:
    """Runs fairseq-hydra-train for one update from a configuration file; returns the checkpoint.

    Args:
        zoo: where.
        name: of the folder.
        model, task: registered names.
        more: further groups of options, such as ``criterion``.
    """
    folder = zoo.folder / name
    folder.mkdir()
    sizes = {"max_source_positions": 128, "max_target_positions": 64}
    for stack, layers in (("encoder", 3), ("decoder", 2)):
        sizes.update({f"{stack}_layers": layers, f"{stack}_embed_dim": 16, f"{stack}_ffn_embed_dim": 32})
        sizes[f"{stack}_attention_heads"] = 2
    configuration = {
        "common": {"cpu": True, "no_progress_bar": True, "seed": 1, "user_dir": TASK[1]},
        "task": {"_name": task, "data": str(zoo.data), "source_lang": "source", "target_lang": "target"},
        "model": {"_name": model, **sizes},
        "criterion": {"_name": "label_smoothed_cross_entropy"},
        "optimizer": {"_name": "adam"},
        "lr_scheduler": {"_name": "fixed"},
        "optimization": {"lr": [0.001], "max_update": 1},
        "dataset": {"batch_size": 15, "num_workers": 0, "disable_validation": True},
        "checkpoint": {"save_dir": str(folder), "no_epoch_checkpoints": True},
        **more,
    }
    (folder / "configuration.yaml").write_text("# @package _group_\n" + json.dumps(configuration), encoding="utf-8")
    options = ["--config-dir", folder, "--config-name", "configuration", f"hydra.run.dir={folder}"]
    run("hydra_train", options, folder / "log")
    return folder / "checkpoint_last.pt"
