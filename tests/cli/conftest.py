"""A small real pipeline through fairseq's own commands, made once: words of the embedded data, a tiny model."""

import os
import subprocess
from pathlib import Path

import pytest
from pairs import read_pairs
from warm import python

ROOT = Path(__file__).resolve().parents[2]
TASK = ["--user-dir", str(ROOT / "sd_fairseq"), "--task", "switchable_translation", "-s", "source", "-t", "target"]
SIZE = [
    *("--encoder-layers", "3", "--decoder-layers", "2", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16"),
    *("--encoder-ffn-embed-dim", "32", "--decoder-ffn-embed-dim", "32"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
    *("--max-source-positions", "256", "--max-target-positions", "64"),
]
TRAINING = [
    *("--optimizer", "adam", "--lr", "1e-3", "--max-tokens", "1024", "--seed", "1", "--cpu", "--num-workers", "0"),
    *("--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "1"),
]
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
SWITCHABLE = ["--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--sd-preset", "paper"]


def fairseq(command, *arguments, check=True, stdin="", program=None):
    """Runs a fairseq command; returns the finished process. ``program`` is a Python, by default the warm one."""
    finished = subprocess.run(
        [program or python(), "-m", f"fairseq_cli.{command}", *map(str, arguments)],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    if check:
        assert finished.returncode == 0, finished.stderr[-3000:]
    return finished


def write_pairs(folder, split, pairs):
    """Writes (source, target) lines and returns their prefix."""
    for side, column in (("source", 0), ("target", 1)):
        (folder / f"{split}.{side}").write_text("".join(pair[column] + "\n" for pair in pairs), encoding="utf-8")
    return str(folder / split)


def binarise(folder, splits, dictionary=None):
    """Runs fairseq-preprocess on {split: pairs}; returns the data folder."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["-s", "source", "-t", "target", "--destdir", folder / "bin", "--workers", 1, "--joined-dictionary"]
    for split, pairs in splits.items():
        arguments += [f"--{split}pref", write_pairs(folder, split, pairs)]
    arguments += ["--srcdict", dictionary] if dictionary else []
    fairseq("preprocess", *arguments)
    return folder / "bin"


class Pipeline:
    """What the tests share.

    Attributes:
        folder: where everything stands.
        data: binarised data with train, valid and test.
        pairs: the (source, target) texts.
        base: a plain BART checkpoint.
        switchable: a checkpoint trained from it with a policy.
        log: standard output of that training.
    """

    def __init__(self, folder):
        self.folder = folder
        rows = read_pairs()
        words = [(" ".join(row["document"].split()[:60]), " ".join(row["summary"].split())) for row in rows]
        self.pairs = {"train": words[:60], "valid": words[60:73], "test": words[73:90]}
        self.data = binarise(folder / "data", self.pairs)
        self.base = folder / "base" / "checkpoint_last.pt"
        self.switchable = folder / "switchable" / "checkpoint_last.pt"
        plain = ["--arch", "bart_base", "--criterion", "label_smoothed_cross_entropy", "--max-update", "3"]
        self.train("base", *plain)
        options = ["--restore-file", self.base, "--reset-optimizer", "--reset-dataloader", "--reset-meters"]
        policy = ["--sd-policy-lr", "0.02", "--sd-mode", "fixed", "--sd-fixed-weight", "20"]
        self.log = self.train("switchable", *SWITCHABLE, *options, *policy, "--max-update", "12").stdout

    binarise = staticmethod(binarise)
    fairseq = staticmethod(fairseq)
    environment = ENVIRONMENT
    task = TASK
    training = [*SIZE, *TRAINING]

    def train(self, name, *arguments, **options):
        """Trains into ``folder/name``."""
        save = ["--save-dir", self.folder / name]
        return fairseq("train", self.data, *TASK, *SIZE, *TRAINING, *save, *arguments, **options)

    def generate(self, checkpoint, *arguments, data=None, **more):
        """Generates the test split with beam 2."""
        options = ["--path", checkpoint, "--beam", 2, "--max-len-b", 10, "--max-tokens", 700, "--cpu"]
        return fairseq("generate", data or self.data, *TASK, *options, *arguments, **more)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    pytest.importorskip("fairseq")
    return Pipeline(tmp_path_factory.mktemp("pipeline"))
