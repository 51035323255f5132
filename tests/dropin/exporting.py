"""Switchable checkpoints as fairseq writes them, their exports, and a model whose policy always takes one path."""

import json
import math
import os
import re
import subprocess
from argparse import Namespace
from pathlib import Path

import torch
from factories import TINY_OPTIONS, build_model, generate, random_batch
from fairseq import checkpoint_utils
from fairseq.models.bart.model import BARTModel
from training import build_task
from warm import python

from sd_fairseq.commands.export import main
from sd_fairseq.plugin.models.fixed_path import parse_path, path_decisions

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ("--user-dir", ROOT / "sd_fairseq", "--sd-generator", "fairseq")
LIMIT = 60  # words
LANGUAGES = {"source_lang": "source", "target_lang": "target"}


def save(model, path, **options):
    """Writes a model, built with ``options``, as fairseq writes one that was trained from the command line."""
    task = {"task": "switchable_translation", "criterion": "sd_policy_criterion", "sentence_avg": False, "data": "."}
    args = {**TINY_OPTIONS, "arch": "switchable_bart_base", **task, **LANGUAGES, **options}
    history = [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 3}]
    extra = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}}
    state = {"args": Namespace(**args), "model": model.state_dict(), "optimizer_history": history, "extra_state": extra}
    torch.save(state, str(path))
    return str(path)


def export(*arguments):
    """Runs the command in this process; returns its exit code."""
    return main([str(argument) for argument in arguments])


def load_plain(path):
    """Loads an export with fairseq's own loader."""
    (model,), _ = checkpoint_utils.load_model_ensemble([str(path)], task=build_task())
    assert type(model) is BARTModel
    return model.eval()


def check_refused(arguments, needles, folder, capsys):
    before = sorted(folder.iterdir())
    assert export(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("sd_fairseq: error: ") and error.count("\n") == 1
    assert all(needle in error for needle in needles), error
    assert sorted(folder.iterdir()) == before


class Frozen:
    """A model that decides the same path for every text, what fairseq-generate makes of it, and its plain export.

    Attributes:
        folder: data, checkpoints and trace.
        ours: hypotheses and scores of the switchable model.
    """

    path = "encoder_attention=110,encoder_ffn=101,decoder_attention=101,decoder_ffn=011"

    def __init__(self, folder):
        self.folder = folder
        torch.manual_seed(5)
        model = build_model()
        dictionary = model.encoder.dictionary
        for side in ("source", "target"):
            dictionary.save(str(folder / f"dict.{side}.txt"))
        batch = random_batch((20, 13, 7, 17, 3, 9, 11, 12, 5, 8), dictionary=dictionary)
        self.batch = batch
        self.sources = [dictionary.string(source).split() for source in batch.sources]
        for side in ("source", "target"):
            text = "".join(" ".join(words) + "\n" for words in self.sources)
            (folder / f"test.source-target.{side}").write_text(text, encoding="utf-8")
        kept = model.space.to_keep(path_decisions(parse_path(self.path, model.space), model.space, 1))[0]
        policy = model.encoder.policy
        torch.nn.init.zeros_(policy.heads.weight)
        with torch.no_grad():
            policy.heads.bias[: len(kept)] = kept * 6.0 - 3.0
            # a normalised vector sums to 0: <pad> gets a logit of -32 always, as small as in a trained model
            model.decoder.layers[-1].final_layer_norm.bias.fill_(0.5)
            model.decoder.embed_tokens.weight[dictionary.pad()] = -2.0
            model.decoder.embed_tokens.weight[dictionary.eos()] *= 1.5  # hypotheses end before the length limit
        save(model, folder / "model.pt")
        self.ours = self.generate("model.pt", *PLUGIN, "--sd-trace", folder / "trace.jsonl")
        wanted = ["--path", "most-frequent", "--trace", folder / "trace.jsonl"]
        finished = self.run("-m", "sd_fairseq.commands.export", folder / "model.pt", folder / "plain.pt", *wanted)
        assert "3 + 3 layers became 2 + 2" in finished, finished

    def run(self, *arguments, with_plugin=True):
        """Runs Python away from the checkout, so that nothing of the plugin is found by accident."""
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(ROOT) if with_plugin else ""
        finished = subprocess.run(
            [python(), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            cwd=str(self.folder),
            env=environment,
            timeout=300,
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        return finished.stdout

    def search(self, beam):
        """As :meth:`generate`, of the export and in this process."""
        plain = load_plain(self.folder / "plain.pt")
        options = {"max_len_b": LIMIT, "min_len": 0}
        best = [one[0] for one in generate([plain], self.batch.net_input, beam, **options)]
        words = [plain.decoder.dictionary.string(one["tokens"]).split() for one in best]
        return {number: (float(one["score"]) / math.log(2), words[number]) for number, one in enumerate(best)}

    def validate(self, checkpoint, *arguments):
        """Returns the loss and the NLL that fairseq-validate logs."""
        task = "switchable_translation" if arguments else "translation"
        options = ["--path", self.folder / checkpoint, "--task", task, "--dataset-impl", "raw", "--cpu"]
        options += ["--valid-subset", "test", "--batch-size", 3, "--required-batch-size-multiple", 1]
        options += ["--log-format", "json", "--num-workers", 0, "-s", "source", "-t", "target", *arguments]
        code = "import sys; from fairseq_cli.validate import cli_main; cli_main(); "
        code += f"assert ('sd_fairseq' in sys.modules) == {bool(arguments)}"
        output = self.run("-c", code, self.folder, *options, with_plugin=bool(arguments))
        (logged,) = re.findall(r"^.* \| test \| ({.*})$", output, re.MULTILINE)
        return {name: float(json.loads(logged)[f"test_{name}"]) for name in ("loss", "nll_loss")}

    def generate(self, checkpoint, *arguments):
        """Returns {sentence: (score, words)} as fairseq-generate with beam 4 prints them; the score to base 2."""
        task = "switchable_translation" if arguments else "translation"
        options = ["--path", self.folder / checkpoint, "--task", task, "--dataset-impl", "raw", "--cpu", "--beam", 4]
        options += ["-s", "source", "-t", "target", "--max-len-b", LIMIT, "--min-len", 0]
        options += ["--required-batch-size-multiple", 1]
        # an installed plugin would be found even without its folder on the path
        watch = "import sys; from fairseq_cli.generate import cli_main; cli_main(); "
        watch += f"assert ('sd_fairseq' in sys.modules) == {bool(arguments)}"
        output = self.run("-c", watch, self.folder, *options, *arguments, with_plugin=bool(arguments))
        found = re.findall(r"^H-(\d+)\t(\S+)\t(.*)$", output, re.MULTILINE)
        return {int(number): (score, words.split()) for number, score, words in found}
