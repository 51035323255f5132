"""The rows of the grid and the commands that make them; everything that all rows share is said here once.

Commands are written with $DATA, $BASE and $OUT in place of folders, which is also how results record them.
"""

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from row_names import row_order

from sd_fairseq.plugin.guards.presets import idle_options

# Every row, dense too: the same data order, updates, optimizer and search.
TRAINING = (
    *("--dropout", "0.1", "--label-smoothing", "0.1", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)"),
    *("--clip-norm", "1.0", "--weight-decay", "0.01", "--lr", "2e-4", "--lr-scheduler", "polynomial_decay"),
    *("--warmup-updates", "20", "--required-batch-size-multiple", "1", "--num-workers", "0", "--disable-validation"),
    *("--no-epoch-checkpoints", "--save-interval-updates", "200", "--keep-interval-updates", "1"),
    *("--log-format", "json", "--log-interval", "10"),
)
# Every row with decisions; chosen by trials on valid and by training logs, see the README.
POLICY = (
    *("--arch", "switchable_bart_tiny", "--sd-space", "encoder,decoder", "--criterion", "sd_policy_criterion"),
    *("--sd-tolerance", "0.25", "--sd-estimator", "reinmax", "--sd-policy-lr", "5e-4"),
    *("--sd-initial-path", "{start-path}", "--sd-initial-keep", "0.85"),
    # of a batch of 14 pairs the violation is mostly noise: slow down what answers to it
    *("--sd-alpha", "5", "--sd-multiplier-floor", "0.3", "--sd-multiplier-ceiling", "3"),
    *("--sd-constraint-interval", "1", "--sd-violation-smoothing", "0.8", "--sd-constraint-temperature", "0.05"),
    *("--sd-distillation", "0.9", "--sd-teacher", "$BASE"),
)
# what no row says stays as the rows were made, whatever is recommended later
PRESET = ("--sd-preset", "paper", "--sd-multiplier-norm", "naive")
KIND = POLICY[:2] + POLICY[4:6]  # of a row with a preset of its own: architecture and criterion
POLICY_SHARE = 0.25  # of the updates, in which only the policy learns; then the backbone does, on the deployed paths
CHECKED = "1000"  # pairs of train on which a trained policy's constraint is measured
SEARCH = (
    *("--beam", "4", "--lenpen", "1.0", "--max-len-b", "40", "--no-repeat-ngram-size", "3", "--max-tokens", "8192"),
    *("--post-process", "sentencepiece", "--scoring", "sd_rouge"),
)
SIZES = (
    *("encoder_layers", "decoder_layers", "encoder_embed_dim", "decoder_embed_dim"),
    *("encoder_ffn_embed_dim", "decoder_ffn_embed_dim", "encoder_attention_heads", "decoder_attention_heads"),
)
TASK = ("--user-dir", "sd_fairseq", "--task", "switchable_translation", "-s", "source", "-t", "target")
BASE = "base"  # in the place of a row's name: weights as they are, without training
PLACEHOLDERS = ("keep", "seed", "static-path", "start-path", "fitted")
# {NAME:TEXT} that name no row: what their text must look like, and an example
FREE = {
    "fitted": (r"0?\.\d+", "{fitted:FLOPs}", "{fitted:0.7}"),
    "student": (r"\d+-\d+", "{student:ENCODER-DECODER}", "{student:6-3}"),
    "rule": (r"[a-z]+:0?\.\d+", "{rule:NAME:FLOPs}", "{rule:hsd:0.7}"),
}
# Placeholder -> row whose FLOPs it matches; {keep:ROW} names another.
MATCHED = {"keep": "tolerance-0.25", "static-path": "tolerance-0.25"}


class RecipeError(ValueError):
    """Something about rows or options that their owner can mend; the message is one line."""


@dataclass(frozen=True)
class Row:
    """One row of rows.tsv.

    Args:
        name: see :data:`tools/row_names.FAMILIES`.
        model: options of the model; may hold :data:`PLACEHOLDERS`.
        criterion: options of the criterion, after the common ones.
        weights: row whose weights are deployed, "base" for the base's own, or "" for a row that is trained.
        generation: options of its generation, after the common ones.
    """

    name: str
    model: Tuple[str, ...]
    criterion: Tuple[str, ...]
    weights: str
    generation: Tuple[str, ...] = ()

    @property
    def has_policy(self) -> bool:
        """False for a row that names a criterion of fairseq's own."""
        return "--criterion" not in self.criterion

    @property
    def has_preset(self) -> bool:
        """True for a row that is trained as a preset says, without the recipe's options of the decisions."""
        return "--sd-preset" in self.criterion

    @property
    def common(self) -> Tuple[str, ...]:
        """The options of the decisions that all rows share."""
        return KIND if self.has_preset else PRESET + POLICY

    @property
    def options(self) -> Tuple[str, ...]:
        """All options of the decisions; what stands twice counts where it stands last."""
        return (() if self.weights or not self.has_policy else self.common) + self.model + self.criterion

    def parts(self, more: Sequence[str]) -> List[str]:
        """Lists the switchable parts of the model.

        Args:
            more: options of all rows with decisions, after the recipe's.
        """
        return last_value(self.ordered(more), "--sd-space").split(",")

    def ordered(self, more: Sequence[str]) -> Tuple[str, ...]:
        """Returns its options of the decisions as they are given to fairseq: those that stand later win.

        Args:
            more: options of all rows with decisions, after the recipe's.
        """
        return (*POLICY, *more, *self.model, *self.criterion)

    def constrains_loss(self, more: Sequence[str]) -> bool:
        """True where the policy's constraint is a loss within ``--sd-tolerance`` of the dense one."""
        if self.has_preset:
            return "--sd-tolerance" in self.criterion
        return last_value(("--sd-mode", "constrained", *self.ordered(more)), "--sd-mode") in ("constrained", "barrier")

    def placeholders(self) -> Dict[str, Tuple[str, str]]:
        """Finds the {placeholders} in its options; see :func:`find_placeholders`."""
        return find_placeholders(" ".join(self.options + self.generation))


@dataclass(frozen=True)
class Settings:
    """What the caller chose for all rows.

    Args:
        updates: of every row's training.
        max_tokens: source tokens of an update.
        training, policy: more options of every row, and of the rows with decisions.
        device: options that place the work of training.
        generation: the same of generation.
        size: dimensions of the base, as options.
        length: limits of its positions, as options.
    """

    updates: int
    max_tokens: int
    training: Tuple[str, ...]
    policy: Tuple[str, ...]
    device: Tuple[str, ...]
    generation: Tuple[str, ...]
    size: Tuple[str, ...]
    length: Tuple[str, ...]

    @property
    def space(self) -> str:
        """The decision space of the rows that name none."""
        return last_value((*POLICY, *self.policy), "--sd-space")


def read_rows(path: str) -> Dict[str, Row]:
    """Reads rows.tsv.

    Raises:
        RecipeError: a line that is no row, an unknown or repeated name, or weights of no trained row above it.
    """
    rows: Dict[str, Row] = {}
    try:
        with open(path, encoding="utf-8") as text:
            lines = text.read().splitlines()
    except OSError as error:
        raise RecipeError("{}: {}".format(path, error.strerror)) from error
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            try:
                row = parse_row(line)
                if row.name in rows:
                    raise ValueError("row {!r} stands twice".format(row.name))
                for kind, match in row.placeholders().values():
                    if kind not in FREE and as_flops(match) is None and (match not in rows or rows[match].weights):
                        raise ValueError("FLOPs of {!r}, which is no trained row above".format(match))
                if row.weights not in ("", BASE) and (row.weights not in rows or rows[row.weights].weights):
                    raise ValueError("weights of {!r}, which is no trained row above".format(row.weights))
            except ValueError as error:
                raise RecipeError("{}:{}: {}".format(path, number, error)) from error
            rows[row.name] = row
    if "dense" not in rows:  # what the others are compared with
        raise RecipeError("{}: no row 'dense'".format(path))
    return rows


def parse_row(line: str) -> Row:
    """Splits a line at its tabs.

    Raises:
        ValueError: too many columns, an unknown name or placeholder, or quotes that do not close.
    """
    columns = [column.strip() for column in line.split("\t")]
    if len(columns) > 5:
        expected = "name, model options, criterion options, weights, generation options"
        raise ValueError("{} columns, expected {}".format(len(columns), expected))
    name, model, criterion, weights, generation = columns + [""] * (5 - len(columns))
    row_order(name)
    find_placeholders(model + criterion + generation)
    options = [tuple(shlex.split(text)) for text in (model, criterion, generation)]
    return Row(name, options[0], options[1], weights, options[2])


def find_placeholders(text: str) -> Dict[str, Tuple[str, str]]:
    """Finds the {names}, {names:ROW} and {names:FLOPs} in a text: what the braces hold -> name, and the rest or "".

    Raises:
        ValueError: an unknown one.
    """
    found = {}
    for inside in re.findall(r"{([^}]*)}", text):
        name, colon, row = inside.partition(":")
        if name in FREE and not re.fullmatch(FREE[name][0], row):
            raise ValueError("{{{}}}: expected {}, such as {}".format(inside, *FREE[name][1:]))
        if name not in ((*MATCHED, *FREE) if colon else PLACEHOLDERS):
            known = ", ".join("{%s}" % one for one in PLACEHOLDERS)
            raise ValueError("{{{}}} is none of {}".format(inside, known))
        found[inside] = name, row or MATCHED.get(name, "")
    return found


def as_flops(match: str) -> Optional[float]:
    """Returns what a placeholder aims at, where that is a number (a share of the dense FLOPs) and no row; else None.

    A placeholder without either aims at nothing: 0.
    """
    return float(match or 0) if re.fullmatch(r"(0?\.\d+)?", match) else None


def size_options(model: Any, task: Any) -> Tuple[Tuple[str, ...], Tuple[str, ...]]:
    """Returns the options that rebuild the base: dimensions, and limits of its positions.

    Args:
        model, task: configurations in its checkpoint; namespaces or mappings.
    """

    def flags(names: Sequence[str], holder: Any) -> List[str]:
        values = holder if isinstance(holder, Mapping) else vars(holder)
        missing = [name for name in names if name not in values]
        if missing:
            raise RecipeError("the base checkpoint does not tell its {}".format(missing[0]))
        return [part for name in names for part in ("--" + name.replace("_", "-"), str(values[name]))]

    size = flags(SIZES, model) + ["--share-all-embeddings"]
    return tuple(size), (*flags(("max_source_positions", "max_target_positions"), task), "--truncate-source")


def last_value(options: Sequence[str], name: str) -> str:
    """Returns the value of an option that has one; what stands last counts."""
    return dict(zip(options, options[1:]))[name]


def recipe_hash() -> str:
    """Returns a short hash of what all rows share, so that results of another recipe are not taken for these."""
    return hashlib.sha256(repr((TRAINING, POLICY, POLICY_SHARE, SEARCH)).encode("utf-8")).hexdigest()[:16]


def fill(options: Sequence[str], values: Dict[str, str]) -> List[str]:
    """Puts values in the place of {names}."""
    filled = list(options)
    for name, value in values.items():
        filled = [option.replace("{" + name + "}", value) for option in filled]
    return filled


def search_command(settings: Settings, output: str, examples: int, lowest: float, sample: str) -> List[str]:
    """Returns the greedy search for static paths of the base, in the decision space of the rows.

    Args:
        settings: of all rows.
        output: JSON file to write.
        examples: of train.
        lowest: relative FLOPs at which it ends.
        sample: how they are chosen, see path_search.
    """
    overrides = json.dumps({"sd_space": settings.space})
    command = ["python", "-m", "sd_fairseq.commands.search_paths", "$DATA", "--path", "$BASE"]
    command += ["--model-overrides", overrides, "--gen-subset", "train", "--examples", str(examples)]
    command += ["--sample", sample]
    command += ["--lowest", str(lowest), "--output", output]
    return command + ([] if "--cpu" in settings.device else ["--cuda"])


def fit_command(settings: Settings, flops: str, output: str, examples: int) -> List[str]:
    """Returns the fit of a policy to searched paths, in the decision space of the rows.

    Args:
        settings: of all rows.
        flops: relative FLOPs to end at.
        output: checkpoint to write, without its ending; the report stands beside it.
        examples: of train, for the search.
    """
    overrides = json.dumps({"sd_space": last_value((*POLICY, *settings.policy), "--sd-space")})
    command = ["python", "-m", "sd_fairseq.commands.fit", "$DATA", "--path", "$BASE"]
    command += ["--model-overrides", overrides, "--gen-subset", "train", "--search-examples", str(examples)]
    command += ["--flops", flops, "--output", output + ".pt", "--report", output + ".json"]
    return command + ([] if "--cpu" in settings.device else ["--cuda"])


def constraint_command(row: Row, seed: int, settings: Settings, output: str) -> List[str]:
    """Returns the check of a trained row's deployed paths against the base's dense path, on pairs of train."""
    place = "$OUT/{}-{}/checkpoint_last.pt".format(row.name, seed)
    command = ["python", "-m", "sd_fairseq.commands.check", "$DATA", "--path", place, "--reference", "$BASE"]
    command += ["--tolerance", last_value(row.ordered(settings.policy), "--sd-tolerance")]
    command += ["--gen-subset", "train", "--examples", CHECKED, "--output", output]
    return command + ([] if "--cpu" in settings.device else ["--cuda"])


def train_command(row: Row, seed: int, settings: Settings, values: Dict[str, str]) -> List[str]:
    """Returns the training of a row, which goes on where an interrupted one stopped."""
    command = ["python", "-m", "fairseq_cli.train", "$DATA", *TASK, *settings.length, *settings.size, *TRAINING]
    command += ["--total-num-update", str(settings.updates), "--max-update", str(settings.updates)]
    command += ["--max-tokens", str(settings.max_tokens), "--seed", str(seed), *settings.device, *settings.training]
    if row.has_policy:
        command += policy_options(row, settings, values)
        command += ["--sd-sampling-seed", str(seed)]
    command += ["--finetune-from-model", "$BASE", "--save-dir", "$OUT/{}-{}".format(row.name, seed)]
    return [*command, *fill(row.model, values), *fill(row.criterion, values)]


def policy_options(row: Row, settings: Settings, values: Dict[str, str]) -> List[str]:
    """Returns the options of the decisions that a row does not say itself, without those that it leaves no effect."""
    first = str(max(1, int(settings.updates * POLICY_SHARE)))
    freeze = [] if row.has_preset else ["--sd-policy-warmup-updates", first, "--sd-policy-freeze-update", first]
    options = [*fill(row.common, values), *freeze, *settings.policy]
    own = [*fill(row.model, values), *fill(row.criterion, values)]
    given = {name[2:].replace("-", "_"): value for name, value in zip(options + own, (options + own)[1:])}
    for idle in idle_options(given):
        name = "--" + idle.replace("_", "-")
        if name not in own:
            while name in options:
                place = options.index(name)
                del options[place : place + 2]
    return options


def generate_command(
    row: Row, seed: int, subset: str, settings: Settings, values: Dict[str, str]
) -> Tuple[List[str], str]:
    """Returns the generation of a row's trace, and the file for its standard output."""
    place = "$OUT/{}-{}/{}".format(row.name, seed, subset)
    checkpoint = "$OUT/{}-{}/checkpoint_last.pt".format(row.weights or row.name, seed)
    checkpoint = "$BASE" if row.weights == BASE else checkpoint
    command = ["python", "-m", "fairseq_cli.generate", "$DATA", *TASK, *settings.length, *settings.generation]
    command += ["--path", checkpoint, "--gen-subset", subset, *SEARCH, "--sd-trace", place + ".trace.jsonl"]
    if row.weights and row.model:
        command += ["--model-overrides", repr(overrides(fill(row.model, values)))]
    return [*command, *fill(row.generation, values)], place + ".txt"


def overrides(options: Sequence[str]) -> Dict[str, Any]:
    """Turns ``--name value`` options into what fairseq's ``--model-overrides`` takes.

    Raises:
        RecipeError: an option without a value.
    """
    if len(options) % 2 or any(not name.startswith("--") for name in options[::2]):
        raise RecipeError("{} cannot be deployed: expected pairs of --name and value".format(" ".join(options)))
    return {name[2:].replace("-", "_"): number(value) for name, value in zip(options[::2], options[1::2])}


def number(text: str) -> Any:
    """Returns an int or a float where the text is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def render(command: Sequence[str], output: str = "") -> str:
    """Returns a command as a shell takes it; $DATA, $BASE and $OUT stay variables."""
    words = [word if re.fullmatch(r"\$[A-Z]+[\w./-]*", word) else shlex.quote(word) for word in command]
    return " ".join(words + ([">", output] if output else []))
