"""Makes rows of mixed traffic, and remembers what is made.

Each row and seed has a folder of weights, logs, texts and traces; each step there is done once. What stands on the
trade-off grid's own legs (commands, locks, failures) is taken from there.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Dict, List, Optional, Sequence

import rows as recipes
from grid import Grid
from recipe import RecipeError, render
from rows import LEARNED, PLAIN, TOLD, Row, Settings
from score import LOSS, Side, read_losses, read_side, score_system
from steps import find_difference, hash_files, locked, read_json, say, write_json

from sd_fairseq.decision.trace import SITE_FIELDS, TraceRecord
from sd_fairseq.evaluation.report import read_system
from sd_fairseq.whole_files import write_json as write_result


class Traffic(Grid):
    """Makes rows.

    Args:
        options: the command line; ``data``, ``base`` and ``out`` are the grid's folders.
        rows: those asked for, by name.
        settings: of all rows.
        inputs: hashes of model and data.
    """

    def __init__(self, options: argparse.Namespace, rows: Dict[str, Row], settings: Settings, inputs: Dict[str, str]):
        super().__init__(options, rows, settings, inputs)  # type: ignore[arg-type]
        self.settings: Settings = settings  # type: ignore[assignment]
        self.rows: Dict[str, Row] = rows  # type: ignore[assignment]
        self.places["MODEL"] = os.path.abspath(options.model)
        self.places["PREPARED"] = os.path.abspath(options.prepared)
        self.prepared: Dict[str, Any] = read_json(os.path.join(options.prepared, "prepared.json"))

    def describe_training(self, updates: int, batches: int) -> Dict[str, Any]:
        """Says what weights depend on: updates, batches of each, and what all trainings share."""
        settings = self.settings
        return {
            "recipe": recipes.recipe_hash(),
            "updates": updates,
            "max_tokens": settings.max_tokens,
            "update_freq": batches,
            "arch": settings.arch,
            "training_options": list(settings.training),
            "data": self.inputs["data"],
        }

    def describe(self, row: Row) -> Dict[str, Any]:  # type: ignore[override]
        """Says what a row depends on beside the seed, so that others are not taken for finished ones."""
        settings, given = self.settings, row.family not in (*PLAIN, *LEARNED)
        return {
            **self.describe_training(0 if row.name == "dense" else settings.updates, settings.update_freq),
            "base": self.hash_base(),
            "policy_options": list(settings.policy) if row.family in LEARNED else [],
            "searched": [*settings.searched, settings.lowest] if given else [],
            "beam": settings.beam,
        }

    def describe_result(self, row: Row) -> Dict[str, Any]:
        """Says what a result depends on: the row, and how it was generated."""
        subset = self.options.subset
        split = [os.path.join(self.places["PREPARED"], "{}.jsonl".format(subset))]
        generation = [one for one in self.settings.generation if one != "--cpu"]
        return {
            **self.describe(row),
            "subset": subset,
            "split": hash_files(split),
            "generation_options": generation,
            "amp_losses": bool(self.settings.amp),
        }

    def hash_base(self) -> str:
        """Returns the hash of the base, which is made where it is missing."""
        if "base" not in self.inputs:
            self.make_base()
            self.inputs["base"] = hash_files([self.places["BASE"]])
        return self.inputs["base"]

    def make_base(self) -> None:
        """Fine-tunes the imported weights on all tasks, nothing skipped; once for all rows."""
        if self.options.given_base:
            return
        settings = self.settings
        length = settings.base_updates, settings.base_update_freq
        about = {**self.describe_training(*length), "model": self.inputs["model"]}
        self.train_folder("base", recipes.base_command(self.settings), about, self.settings.base_updates)

    def make_once(self, command: List[str], place: str, output: Optional[str] = None) -> None:
        """Runs a step whose last file is ``place``, unless that is there; its folder is locked meanwhile.

        Args:
            command: the step.
            place: file that it makes, of $OUT.
            output: file for its standard output.
        """
        target = self.resolve(place)
        self.commands[target] = render(command, output or "")
        with locked(os.path.dirname(target)):
            if not os.path.exists(target):
                say("{}".format(place))
                self.run(command, target + ".log", self.resolve(output) if output else None)

    def search(self) -> None:
        """Searches the paths that rows may take, once.

        Raises:
            RecipeError: those in --out were searched otherwise.
        """
        settings = self.settings
        about = {"base": self.hash_base(), "searched": [*settings.searched, settings.lowest], "beam": settings.beam}
        folder = self.resolve("$OUT/search")
        with locked(folder):
            stamp = os.path.join(folder, "settings.json")
            difference = find_difference(read_json(stamp), about) if os.path.exists(stamp) else None
            if difference:
                raise RecipeError("{}: searched with {}; remove it or give another --out".format(folder, difference))
            write_json(stamp, about)
        self.make_once(recipes.search_command(settings), "$OUT/search/table.json")

    def find_given(self, row: Row) -> Dict[str, str]:
        """Makes what a row does not learn; returns it by name."""
        if row.family in (*PLAIN, *LEARNED):
            return {}
        self.search()
        place = "$OUT/given/{}".format(row.name)
        make = recipes.fit_command if row.family == "fitted" else recipes.told_command
        self.make_once(make(row, self.settings, place), place + ".json")
        found = read_json(self.resolve(place + ".json"))
        if row.family == "static":
            return {"path": found["path"]}
        return {"keep": str(found["keep"])} if row.family == "random" else {"policy": place + ".pt"}

    def train(self, name: str, seed: int) -> None:
        """Trains a row."""
        row = self.rows[name]
        given = self.find_given(row)
        command = recipes.train_command(row, seed, self.settings, given)
        self.train_folder("{}-{}".format(name, seed), command, self.describe(row), self.settings.updates)

    def generate(self, name: str, seed: int, subset: str) -> None:
        """Generates a split with a row, and measures its losses there."""
        checkpoint, place = "$BASE", "$OUT/{}-{}/{}".format(name, seed, subset)
        if name == "dense":
            self.hash_base()
        else:
            self.train(name, seed)
            checkpoint = "$OUT/{}-{}/checkpoint_last.pt".format(name, seed)
        found = [one for one in os.listdir(self.places["PREPARED"]) if one.startswith("tokenizer.")]
        if not found:
            raise RecipeError("--prepared: no tokenizer there; prepare.py copies it")
        command = recipes.generate_command(checkpoint, place, subset, self.settings, found[0])
        self.make_once(command, place + ".txt", place + ".txt")
        self.make_once(recipes.losses_command(checkpoint, place, subset, self.settings), place + ".losses.json")

    def make(self, name: str, seed: int) -> Dict[str, Any]:
        """Makes a row's result.

        Raises:
            StepError, ValueError, OSError: a step failed.
        """
        row, subset = self.rows[name], self.options.subset
        self.generate(name, seed, subset)
        place = os.path.join(self.folder(name, seed), subset)
        side = read_side(os.path.join(self.places["PREPARED"], subset + ".jsonl"))
        system = read_system(name, place + ".txt", place + ".trace.jsonl")
        losses = read_losses(place + ".losses.json", len(side))
        result = {"row": name, "seed": seed, **score_system(system, side, losses, self.prepared["shares"])}
        given = read_json(self.resolve("$OUT/given/{}.json".format(name)))
        if given is not None:
            result["given"] = given
        if row.family in TOLD:
            result["follows_the_rule"] = follow_rate(system.records, side, given)
        trained = "base" if name == "dense" else "{}-{}".format(name, seed)
        made = read_json(self.resolve("$OUT/{}/trained".format(trained))) or {}
        result["device"] = {"training": made.get("device"), "generation": self.name_device(self.settings.generation)}
        result["training_versions"] = made.get("versions")
        return result

    def is_finished(self, row: str, seed: int) -> bool:
        """Tells whether a row's result is there; a failure is tried again.

        Raises:
            RecipeError: it was made with other settings.
        """
        path = self.result_path(row, seed)
        result = read_json(path)
        if result is None or "failed" in result:
            return False
        difference = find_difference(result.get("settings"), self.describe_result(self.rows[row]))
        if difference:
            raise RecipeError("{}: made with {}; remove it or give another --results".format(path, difference))
        return True

    def summarise(self, result: Dict[str, Any]) -> str:
        """Says the most important figures in one line."""
        traffic = result["traffic"]
        tasks = ("{} {:.4f}".format(task, figures[LOSS]) for task, figures in result["tasks"].items())
        return "FLOPs {:.3f}, loss {:.4f} ({})".format(traffic["flops_corpus"], traffic[LOSS], ", ".join(tasks))

    def shared_commands(self) -> Dict[str, str]:
        """Returns the training of the base, unless it is the caller's own."""
        return {} if self.options.given_base else {"base": render(recipes.base_command(self.settings))}

    def write(self, path: str, result: Dict[str, Any]) -> None:
        """Writes a result."""
        os.makedirs(self.options.results, exist_ok=True)
        write_result(path, result)


def follow_rate(records: Sequence[TraceRecord], side: Sequence[Side], given: Dict[str, Any]) -> float:
    """Returns the share of examples that took the path of their task, or of their length."""
    paths, edges = given["paths"], given["edges"]
    named = ["to {}".format(edge) for edge in edges] + ["longer"]
    right = 0
    for record in records:
        length = named[sum(record.source_tokens > edge for edge in edges)]
        group = side[record.id].task if given["rule"] in ("task", "each") else length
        sites: List[str] = [*SITE_FIELDS, "token_strategy"]
        right += paths.get(group) == ",".join("{}={}".format(site, getattr(record, site)) for site in sites)
    return right / len(records)
