"""The rows of mixed traffic and the commands that make them; everything that all rows share is said here once.

Commands are written with $DATA, $PREPARED, $MODEL, $BASE and $OUT in place of folders, which is also how results record
them. A row is called FAMILY or FAMILY-FLOPS, FLOPS a share of the dense FLOPs of all requests together.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Dict, List, Tuple

from recipe import RecipeError

TASK = ("--user-dir", "sd_fairseq", "--task", "switchable_translation", "-s", "source", "-t", "target")
# Every training, the base's too.
TRAINING = (
    *("--dropout", "0.1", "--label-smoothing", "0", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)"),
    *("--clip-norm", "1.0", "--weight-decay", "0.01", "--lr-scheduler", "polynomial_decay", "--warmup-updates", "20"),
    *("--required-batch-size-multiple", "1", "--num-workers", "0", "--disable-validation", "--no-epoch-checkpoints"),
    *("--save-interval-updates", "50", "--keep-interval-updates", "1", "--log-format", "json", "--log-interval", "10"),
)
RATES = {"base": "5e-4", "row": "3e-4"}
BASE = ("--sd-policy", "dense", "--criterion", "label_smoothed_cross_entropy")
# Every row that is trained: the preset, FLOPs of the whole corpus, cross-attention with switches of its own.
ROW = (
    *("--criterion", "sd_policy_criterion", "--sd-preset", "recommended", "--sd-teacher", "$BASE"),
    *("--sd-flops-average", "corpus", "--sd-cross-attention-apart"),
)
SPACE = {"sd_policy": "network", "sd_space": "encoder,decoder", "sd_cross_attention_apart": True}
STANDING = ("--sd-policy-freeze-update", "1", "--sd-policy-lr", "1e-9")  # the policy is as it was given
SEARCH = ("--max-len-b", "64", "--max-tokens", "8192", "--lenpen", "1.0")
SEARCHED = 0.05  # a search ends so much below the lowest FLOPs of the rows
PLAIN = ("dense", "dense-trained-on")
BUDGETED = ("recommended", "blind", "fitted", "static", "by-task", "by-length", "clustered", "fair", "random")
STEPS = ("base", "search")  # may be asked for alone; they leave no result
LEARNED = ("recommended", "blind")  # rows that learn their decisions
RULES = {"by-task": "task", "by-length": "length", "fair": "each", "clustered": "kind"}
TOLD = ("by-task", "by-length", "fair")  # whose rule can be followed from outside


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        name: as it is asked for.
        family: of :data:`PLAIN` or :data:`BUDGETED`.
        flops: as it is written in the name; "" = none.
    """

    name: str
    family: str
    flops: str


@dataclass(frozen=True)
class Settings:
    """What the caller chose for all rows.

    Args:
        updates, base_updates: of every row's training, and of the base's.
        max_tokens: source tokens of a batch.
        update_freq, base_update_freq: batches of an update of a row, and of the base.
        beam: of the search; FLOPs are counted for it everywhere.
        arch: architecture of the model.
        limits: longest source and target.
        training, policy: more options of every training, and of the rows that learn their policy.
        device, generation: options that place the work of training and of generation.
        searched: examples of each task's search, and of the table.
        lowest: relative FLOPs where searches end.
    """

    updates: int
    base_updates: int
    max_tokens: int
    update_freq: int
    base_update_freq: int
    beam: int
    arch: str
    limits: Tuple[int, int]
    training: Tuple[str, ...]
    policy: Tuple[str, ...]
    device: Tuple[str, ...]
    generation: Tuple[str, ...]
    searched: Tuple[int, int]
    lowest: float

    @property
    def kind(self) -> List[str]:
        """Architecture and limits, as options."""
        limits = zip(("--max-source-positions", "--max-target-positions"), map(str, self.limits))
        return ["--arch", self.arch, *(part for pair in limits for part in pair)]

    @property
    def amp(self) -> List[str]:
        """--amp where trainings have it; losses and searches then multiply in bfloat16, too."""
        return ["--amp"] if "--amp" in self.device else []


def parse_row(name: str) -> Row:
    """Reads a row's name.

    Raises:
        RecipeError: none.
    """
    if name in PLAIN:
        return Row(name, name, "")
    found = re.fullmatch(r"({})-(0\.\d+)".format("|".join(BUDGETED)), name)
    if found is None:
        known = ", ".join([*PLAIN, *("{}-0.7".format(family) for family in BUDGETED)])
        raise RecipeError("row {!r} is none of {} (or other FLOPs)".format(name, known))
    return Row(name, *found.groups())


def recipe_hash() -> str:
    """Returns a short hash of what all rows share, so that results of another recipe are not taken for these."""
    shared = TRAINING, RATES, BASE, ROW, SPACE, STANDING, SEARCH
    return hashlib.sha256(repr(shared).encode("utf-8")).hexdigest()[:16]


def base_command(settings: Settings) -> List[str]:
    """Returns the dense multi-task fine-tuning of the imported weights, seed 1."""
    command = _training(settings, (settings.base_updates, settings.base_update_freq), RATES["base"], 1)
    return [*command, *BASE, "--finetune-from-model", "$MODEL", "--save-dir", "$OUT/base"]


def train_command(row: Row, seed: int, settings: Settings, given: Dict[str, str]) -> List[str]:
    """Returns the training of a row from the base.

    Args:
        row, seed, settings: what is trained.
        given: what the row does not learn: ``path``, ``keep`` or ``policy``.
    """
    command = _training(settings, (settings.updates, settings.update_freq), RATES["row"], seed)
    command += [*ROW, "--sd-cost-beam", str(settings.beam), "--sd-sampling-seed", str(seed)]
    start = "$BASE"
    if row.family == "dense-trained-on":
        command += ["--sd-policy", "dense"]
    elif row.family == "static":
        command += ["--sd-policy", "static", "--sd-static-path", given["path"]]
    elif row.family == "random":
        command += ["--sd-policy", "random", "--sd-random-keep", given["keep"], "--sd-random-seed", str(seed)]
    else:
        command += ["--sd-flops-budget", row.flops]
        if row.family in LEARNED:
            command += settings.policy
            command += ["--sd-policy-input", "nothing"] if row.family == "blind" else []
        else:
            start = given["policy"]
            command += STANDING
            command += ["--sd-policy-input", "length"] if row.family == "by-length" else []
    return [*command, "--finetune-from-model", start, "--save-dir", "$OUT/{}-{}".format(row.name, seed)]


def _training(settings: Settings, length: Tuple[int, int], rate: str, seed: int) -> List[str]:
    updates, batches = map(str, length)
    command = ["python", "-m", "fairseq_cli.train", "$DATA", *TASK, *settings.kind, *TRAINING, "--lr", rate]
    command += ["--total-num-update", updates, "--max-update", updates, "--seed", str(seed)]
    command += ["--max-tokens", str(settings.max_tokens), "--update-freq", batches]
    return [*command, *settings.device, *settings.training]


def _loading(settings: Settings, **changes: str) -> List[str]:
    """Returns the options of a command that loads the base in the decision space of the rows."""
    device = [] if "--cpu" in settings.device else ["--cuda"]
    overrides = json.dumps({**SPACE, **changes})
    return ["$DATA", "--path", "$BASE", "--model-overrides", overrides, "--beam", str(settings.beam), *device]


def search_command(settings: Settings) -> List[str]:
    """Returns the search for the paths that rows may take."""
    few, many = map(str, settings.searched)
    command = ["python", "examples/mixed_traffic/search.py", *_loading(settings), *settings.amp]
    command += ["--side", "$PREPARED/train.jsonl", "--prepared", "$PREPARED/prepared.json", "--search-examples", few]
    command += ["--examples", many, "--lowest", str(settings.lowest)]
    return [*command, "--output", "$OUT/search/table.npz", "--index", "$OUT/search/table.json"]


def told_command(row: Row, settings: Settings, place: str) -> List[str]:
    """Returns the command that makes what a row is given: a path, a policy by a rule, or a probability.

    Args:
        row, settings: which row.
        place: file to write, without its ending.
    """
    inputs = {"by-length": {"sd_policy_input": "length"}, "random": {"sd_policy": "random"}}
    what = {"static": "path", "random": "keep"}.get(row.family, "policy")
    command = ["python", "examples/mixed_traffic/told.py", what, *_loading(settings, **inputs.get(row.family, {}))]
    command += ["--table", "$OUT/search/table.npz", "--index", "$OUT/search/table.json", "--flops", row.flops]
    if what != "policy":
        return [*command, "--output", place + ".json"]
    return [*command, "--rule", RULES[row.family], "--output", place + ".pt", "--report", place + ".json"]


def fit_command(row: Row, settings: Settings, place: str) -> List[str]:
    """Returns the fit of a policy to the table; arguments as of :func:`told_command`."""
    command = ["python", "-m", "sd_fairseq.commands.fit", *_loading(settings), "--table", "$OUT/search/table.npz"]
    command += ["--gen-subset", "train", "--examples", str(settings.searched[1])]
    command += ["--flops", row.flops, "--flops-average", "corpus"]
    return [*command, "--output", place + ".pt", "--report", place + ".json"]


def generate_command(checkpoint: str, place: str, subset: str, settings: Settings, tokenizer: str) -> List[str]:
    """Returns the generation of a split; its standard output belongs to ``place`` + ".txt".

    Args:
        checkpoint: what generates.
        place: of text and trace, without their endings.
        subset: split.
        settings: of all rows.
        tokenizer: name of the file in the prepared folder.
    """
    command = ["python", "-m", "fairseq_cli.generate", "$DATA", *TASK, *settings.generation, *SEARCH]
    command += ["--beam", str(settings.beam), "--path", checkpoint, "--gen-subset", subset]
    command += ["--bpe", "sd_tokenizer", "--sd-tokenizer", "$PREPARED/" + tokenizer]
    return [*command, "--sd-trace", place + ".trace.jsonl"]


def losses_command(checkpoint: str, place: str, subset: str, settings: Settings) -> List[str]:
    """Returns the teacher-forced losses of a split; arguments as of :func:`generate_command`."""
    command = ["python", "examples/mixed_traffic/losses.py", "$DATA", "--path", checkpoint, "--gen-subset", subset]
    device = [] if "--cpu" in settings.device else ["--cuda"]
    command += ["--beam", str(settings.beam), *settings.amp, *device]
    return [*command, "--output", place + ".losses.json"]
