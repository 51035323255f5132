"""The grid: makes rows from one base, and remembers what is made.

Each row and seed has a folder of weights, logs, texts and traces; each step there is done once.
"""

import argparse
import glob
import json
import os
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

import learning_results
import torch
from recipe import (
    BASE,
    RecipeError,
    Row,
    Settings,
    as_flops,
    constraint_command,
    fit_command,
    generate_command,
    recipe_hash,
    render,
    search_command,
    train_command,
)
from steps import StepError, find_difference, locked, read_json, run_command, say, write_json
from understanding_table import find_versions

from sd_fairseq.decision.trace import read_trace
from sd_fairseq.evaluation.report import System, read_system
from sd_fairseq.evaluation.skip_report import summarise_trace

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TUNED_ON = "valid"  # where the FLOPs to be matched are found: nothing is chosen on what is reported


class Grid:
    """Makes rows.

    Args:
        options: the command line.
        rows: of rows.tsv.
        settings: of all rows.
        inputs: hashes of base and data.
    """

    def __init__(self, options: argparse.Namespace, rows: Dict[str, Row], settings: Settings, inputs: Dict[str, str]):
        self.options, self.rows, self.settings, self.inputs = options, rows, settings, inputs
        self.places = {name: os.path.abspath(getattr(options, name.lower())) for name in ("DATA", "BASE", "OUT")}
        self.commands: Dict[str, str] = {}  # what it makes -> command, of the row in hand
        self.failed: Dict[str, str] = {}  # command -> why, so that what many rows need fails once

    def describe(self, row: Row) -> Dict[str, Any]:
        """Says what a row's weights depend on beside the seed, so that others are not taken for finished ones."""
        settings = self.settings
        return {
            "recipe": recipe_hash(),
            "updates": settings.updates,
            "max_tokens": settings.max_tokens,
            "training_options": list(settings.training),
            "policy_options": list(settings.policy) if row.has_policy else [],
            "start_flops": self.options.start_flops if row.has_policy else None,
            "search_sample": "examples" if row.has_policy and self.options.search_sample == "examples" else None,
            "row_options": [*row.model, *row.criterion],
            "weights": row.weights,
            **({"generation_options": list(row.generation)} if row.generation else {}),
            **self.inputs,
        }

    def result_path(self, row: str, seed: int) -> str:
        """Where a row's result stands."""
        return os.path.join(self.options.results, "{}-{}.json".format(row, seed))

    def is_finished(self, row: str, seed: int) -> bool:
        """Tells whether a row's result is there; a failure is tried again.

        Raises:
            RecipeError: it was made with other settings.
        """
        path = self.result_path(row, seed)
        if not os.path.exists(path):
            return False
        result = learning_results.read_result(path)
        if "failed" in result:
            return False
        wanted = {**self.describe(self.rows[row]), "subset": self.options.subset}
        if self.rows[row].weights == BASE and isinstance(result.get("settings"), dict):
            for name in ("start_flops", "search_sample"):
                wanted[name] = result["settings"].get(name)  # of no use to weights as they are
        difference = find_difference(result.get("settings"), wanted)
        if difference:
            raise RecipeError("{}: made with {}; remove it or give another --results".format(path, difference))
        return True

    def folder(self, row: str, seed: int) -> str:
        """Folder of a row's weights, logs and texts."""
        return os.path.join(self.places["OUT"], "{}-{}".format(row, seed))

    def resolve(self, text: str) -> str:
        """Replaces $DATA, $BASE and $OUT at the start of a word."""
        for name, path in self.places.items():
            if text == "$" + name or text.startswith("$" + name + "/"):
                return path + text[len(name) + 1 :]
        return text

    def hide(self, text: str) -> str:
        """Takes this machine's folders out of a message."""
        for name, path in sorted(self.places.items(), key=lambda one: -len(one[1])):
            text = text.replace(path, "$" + name)
        return text.replace(ROOT + os.sep, "").replace(os.path.expanduser("~") + os.sep, "~/")

    def run(self, command: Sequence[str], log: str, output: Optional[str] = None, updates: int = 0) -> None:
        """Runs a command; see :func:`steps.run_command`.

        Raises:
            StepError: it failed, now or before for another row.
        """
        key = " ".join(command)
        if key in self.failed:
            raise StepError(self.failed[key])
        words = [sys.executable, *map(self.resolve, command[1:])]
        places = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": places, "PYTHONWARNINGS": "ignore"}
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(self.options.threads)
        try:
            run_command(words, log, output, updates, cwd=ROOT, env=environment)
        except StepError as error:
            place = self.hide(os.path.splitext(log)[0])
            self.failed[key] = self.hide("{}: {}".format(place, error))
            raise StepError(self.failed[key]) from error

    def train(self, name: str, seed: int) -> None:
        """Trains a row; see :meth:`train_folder`."""
        row = self.rows[name]
        command = train_command(row, seed, self.settings, self.find_values(row, seed))
        self.train_folder("{}-{}".format(name, seed), command, self.describe(row), self.settings.updates)

    def train_folder(self, name: str, command: List[str], about: Dict[str, Any], updates: int) -> None:
        """Trains in a folder of its own; goes on where an interrupted training stopped.

        Args:
            name: of the folder, in $OUT.
            command: the training.
            about: what its weights depend on.
            updates: of the training.

        Raises:
            RecipeError: the folder holds a training with other settings.
            StepError: it failed.
        """
        folder = os.path.join(self.places["OUT"], name)
        self.commands[folder] = render(command)
        with locked(folder):
            stamp, done = os.path.join(folder, "settings.json"), os.path.join(folder, "trained")
            begun = glob.glob(os.path.join(glob.escape(folder), "checkpoint*.pt"))
            difference = find_difference(read_json(stamp), about) if begun else None
            if difference:
                raise RecipeError("{}: trained with {}; remove it or give another --out".format(folder, difference))
            if os.path.exists(done):
                return
            write_json(stamp, about)
            say("{}: training, {} updates".format(name, updates))
            self.run(command, os.path.join(folder, "train.log"), updates=updates)
            for old in glob.glob(os.path.join(glob.escape(folder), "checkpoint_*_*.pt")):
                os.remove(old)  # only needed to go on after an interruption
            write_json(done, {"device": self.name_device(self.settings.device), "versions": find_versions()})

    def generate(self, name: str, seed: int, subset: str) -> None:
        """Generates a split with a row."""
        row, folder = self.rows[name], self.folder(name, seed)
        if row.weights != BASE:
            self.train(row.weights or name, seed)
        command, output = generate_command(row, seed, subset, self.settings, self.find_values(row, seed))
        place = self.resolve(output)
        self.commands[place] = render(command, output)
        with locked(folder):
            if not os.path.exists(place):
                say("{}, seed {}: generating {}".format(name, seed, subset))
                self.run(command, os.path.join(folder, subset + ".log"), place)

    def find_values(self, row: Row, seed: int) -> Dict[str, str]:
        """Finds what the row's {placeholders} stand for."""
        values = {"seed": str(seed)}
        for inside, (name, match) in row.placeholders().items():
            if name == "keep":
                values[inside] = self.match_random(match, seed)
            elif name == "static-path":
                values[inside] = self.find_path(as_flops(match) or self.measure_flops(match, seed))
            elif name == "start-path":
                values[inside] = self.find_path(self.options.start_flops, row.parts(self.settings.policy))
            elif name == "fitted":
                values[inside] = self.fit_policy(match)
        return values

    def fit_policy(self, flops: str) -> str:
        """Returns the base with a policy that is fitted to searched paths, made where it is not there yet.

        Args:
            flops: relative FLOPs to end at.
        """
        place = "$OUT/fit-{}/policy".format(flops)
        command = fit_command(self.settings, flops, place, self.options.search_examples)
        self.commands[place] = render(command)
        with locked(self.resolve(os.path.dirname(place))):
            if not os.path.exists(self.resolve(place + ".pt")):
                say("base: fitting a policy at {} of the FLOPs".format(flops))
                self.run(command, self.resolve(place + ".log"))
        return place + ".pt"

    def match_random(self, name: str, seed: int) -> str:
        """Returns the keep-probability at which random decisions cost what a row's do on valid, or a given share."""
        flops: List[str] = []
        if as_flops(name) is not None:
            space = json.dumps({"sd_space": self.settings.space})
            flops, name = ["--flops", name, "--model-overrides", space], "dense"
        self.generate(name, seed, TUNED_ON)
        folder = "$OUT/{}-{}".format(name, seed)
        command = ["python", "-m", "sd_fairseq.commands.match_random", "$DATA"]
        command += ["--path", folder + "/checkpoint_last.pt" if self.rows[name].weights != BASE else "$BASE"]
        command += ["--trace", "{}/{}.trace.jsonl".format(folder, TUNED_ON), *flops]
        place = "{}/{}.txt".format(folder, "-".join(["keep", *flops[1:2]]))
        output = self.resolve(place)
        self.commands[output] = render(command, place)
        with locked(self.folder(name, seed)):
            if not os.path.exists(output):
                self.run(command, self.resolve(folder + "/keep.log"), output)
            with open(output, encoding="utf-8") as text:
                return text.read().split()[-1]

    def measure_flops(self, name: str, seed: int) -> float:
        """Returns the mean relative FLOPs of a row on valid."""
        self.generate(name, seed, TUNED_ON)
        trace = os.path.join(self.folder(name, seed), TUNED_ON + ".trace.jsonl")
        return summarise_trace(read_trace(trace)).flops_generation

    def find_path(self, flops: float, parts: Sequence[str] = ("encoder", "decoder", "token")) -> str:
        """Returns a path on the frontier of a greedy search from the base, on pairs of train.

        Args:
            flops: the path nearest to these.
            parts: of the model; what the path skips elsewhere is kept.
        """
        output = "$OUT/search/frontier.json"
        options = self.options
        about = options.search_examples, options.search_lowest, options.search_sample
        command = search_command(self.settings, output, *about)
        self.commands[output] = render(command)
        with locked(self.resolve("$OUT/search")):
            if not os.path.exists(self.resolve(output)):
                say("base: searching static paths")
                self.run(command, self.resolve("$OUT/search/search.log"))
            frontier: List[Dict[str, Any]] = read_json(self.resolve(output))["static_frontier"]
        nearest = min(frontier, key=lambda point: abs(point["flops_generation"] - flops))
        sites = [(site, value) for site, value in nearest["path"].items() if site.split("_")[0] in parts]
        return ",".join("{}={}".format(*site) for site in sites)

    def check_constraint(self, name: str, seed: int) -> Dict[str, Any]:
        """Measures a trained row's violation on many pairs of train, its policy standing still."""
        output = "$OUT/{}-{}/constraint.json".format(name, seed)
        command, place = constraint_command(self.rows[name], seed, self.settings, output), self.resolve(output)
        self.commands[place] = render(command)
        with locked(self.folder(name, seed)):
            if not os.path.exists(place):
                say("{}, seed {}: checking the constraint".format(name, seed))
                self.run(command, os.path.join(self.folder(name, seed), "constraint.log"))
            found: Dict[str, Any] = read_json(place)
            return found

    def make(self, name: str, seed: int) -> Dict[str, Any]:
        """Makes a row's result.

        Raises:
            StepError, ValueError, OSError: a step failed.
        """
        subset, systems = self.options.subset, {}
        for one in dict.fromkeys(("dense", name)):
            self.generate(one, seed, subset)
            systems[one] = self.read(one, seed, subset)
        result = learning_results.measure(name, seed, systems[name], systems["dense"], self.options.data_name)
        result["device"] = {"generation": self.name_device(self.settings.generation)}
        result["device"]["training"], result["training_versions"] = self.find_training(self.rows[name], seed)
        log = []
        if not self.rows[name].weights:
            log = learning_results.read_training_log(os.path.join(self.folder(name, seed), "train.log"))
        result["updates"] = 0 if self.rows[name].weights == BASE else self.settings.updates
        result["updates_to_converge"] = learning_results.updates_to_converge(log)
        result["violation_last"] = learning_results.violation_last(log)
        if result["violation_last"] is not None and self.rows[name].constrains_loss(self.settings.policy):
            result[learning_results.CONSTRAINT] = self.check_constraint(name, seed)
        return result

    def read(self, name: str, seed: int, subset: str) -> System:
        """Reads what a row generated.

        Raises:
            ValueError: texts and trace do not belong together.
        """
        place = os.path.join(self.folder(name, seed), subset)
        return read_system(name, place + ".txt", place + ".trace.jsonl")

    @staticmethod
    def name_device(options: Sequence[str]) -> str:
        """Names what runs a command with these options; without a GPU, or with --cpu, it is a CPU."""
        if "--cpu" in options or not torch.cuda.is_available():
            return "CPU"
        return str(torch.cuda.get_device_name())

    def find_training(self, row: Row, seed: int) -> Tuple[str, Dict[str, str]]:
        """Returns the device and the versions that trained a row, which need not be this machine's."""
        made = None
        if row.weights != BASE:
            made = read_json(os.path.join(self.folder(row.weights or row.name, seed), "trained"))
        if not isinstance(made, dict):  # the base, or a training from before devices were noted
            made = {"device": self.name_device(self.settings.device), "versions": find_versions()}
        return made["device"], made["versions"]

    def describe_result(self, row: Row) -> Dict[str, Any]:
        """Says what a result depends on: the row, and what was generated."""
        return {**self.describe(row), "subset": self.options.subset}

    def summarise(self, result: Dict[str, Any]) -> str:
        """Says the most important figures of a result in one line."""
        return "ROUGE-L {rougeL:.2f}, FLOPs {flops_generation:.3f}".format(**result)

    def shared_commands(self) -> Dict[str, str]:
        """Returns the commands that all rows share, to be recorded with each."""
        return {}

    def write(self, path: str, result: Dict[str, Any]) -> None:
        """Writes a result."""
        learning_results.write_result(path, result)

    def finish(self, name: str, seed: int) -> bool:
        """Makes and writes a row's result, or the record of its failure; tells whether it succeeded."""
        if self.is_finished(name, seed):
            say("{}, seed {}: finished before".format(name, seed))
            return True
        self.commands = self.shared_commands()
        try:
            result = self.make(name, seed)
            say("{}, seed {}: {}".format(name, seed, self.summarise(result)))
        except RecipeError:
            raise
        except (StepError, ValueError, OSError) as error:
            message = self.hide((str(error) or type(error).__name__).splitlines()[0])
            result = {"row": name, "seed": seed, "failed": message}
            say("{}, seed {}: FAILED: {}".format(name, seed, message))
        result["settings"] = self.describe_result(self.rows[name])
        result["command"] = list(self.commands.values())
        result["versions"] = find_versions()
        self.write(self.result_path(name, seed), result)
        return "failed" not in result
