"""Make one stream of four tasks for a pretrained T5: text-to-text pairs, tokenized and binarised.

    python examples/mixed_traffic/prepare.py OUT --tokenizer t5/tokenizer.json --dictionary t5/dict.txt \\
        --sst2 DIR --scitldr DIR --squad DIR

OUT/data-bin        what fairseq-train and fairseq-generate read: train (a shuffled epoch), valid, test, unseen
OUT/SPLIT.jsonl     a line for every line of a split: its id, task, key and right answers (several are allowed)
OUT/prepared.json   where everything came from, counts and shares, what was cut
OUT/tokenizer.*     a copy

The same bytes every time. A task whose folder is not given is left out. What was made before is not made again.
"""

import argparse
import json
import os
import random
import shutil
import sys
from typing import Any, Dict, List, Sequence, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT, HERE, os.path.join(ROOT, "examples", "tradeoff")]

import tasks  # noqa: E402
from steps import StepError, find_difference, hash_files, locked, read_json, run_command  # noqa: E402
from tasks import Example, Splits, by_hash, cut, read_task  # noqa: E402
from tqdm import tqdm  # noqa: E402

from sd_fairseq.errors import InputError, run  # noqa: E402
from sd_fairseq.whole_files import copy_whole, write_json, write_text  # noqa: E402

SPLITS = ("train", "valid", "test")
MADE_BY = "prepared.json"


class Encoder:
    """Turns texts into symbols of the model, as ``sd-encode`` does.

    Args:
        path: tokenizer.json or a SentencePiece model.

    Raises:
        InputError: no such file, or another kind.
    """

    def __init__(self, path: str):
        from sd_fairseq.plugin.text.tokenizer import SDTokenizer, SDTokenizerConfig

        self.inner = SDTokenizer(SDTokenizerConfig(sd_tokenizer=path))
        self.known: Dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """Returns the symbols of a text, separated by blanks; each text is encoded once."""
        if text not in self.known:
            self.known[text] = self.inner.encode(text)
        return self.known[text]

    def length(self, text: str) -> int:
        """Returns its tokens, the end of sentence included."""
        return len(self(text).split()) + 1


def parse_weights(text: str, chosen: Sequence[str]) -> Dict[str, int]:
    """Reads TASK=EXAMPLES, separated by commas, over the default weights.

    Raises:
        InputError: another form, or a task that is not there.
    """
    weights = {task: tasks.WEIGHTS[task] for task in chosen}
    for part in filter(None, text.split(",")):
        task, _, number = part.partition("=")
        if task not in weights or not number.isdigit() or int(number) < 1:
            raise InputError("--weights {!r}: expected TASK=EXAMPLES, TASK of {}".format(part, ", ".join(chosen)))
        weights[task] = int(number)
    return weights


def mix(pools: Dict[str, List[Example]], weights: Dict[str, int], seed: int) -> List[Example]:
    """Returns a shuffled epoch with so many examples of each task; a pool that is smaller is taken several times."""
    epoch: List[Example] = []
    for task, pool in pools.items():
        order = sorted(pool, key=lambda one: by_hash(one.task + one.key))
        rounds, rest = divmod(weights[task], len(order))
        epoch += order * rounds + order[:rest]
    random.Random(seed).shuffle(epoch)
    return epoch


def spread(examples: List[Example], count: int) -> List[Example]:
    """Returns ``count`` examples, evenly spread, or all where that is 0 or more than there are."""
    if not 0 < count < len(examples):
        return examples
    return [examples[(2 * place + 1) * len(examples) // (2 * count)] for place in range(count)]


def shorten(examples: List[Example], split: str, limit: int, encoder: Encoder, counts: Dict[str, int]) -> List[Example]:
    """Cuts what is too long: around SQuAD's answer in training, from the front in held-out splits; counts both."""
    made: Dict[int, Example] = {}
    for one in tqdm(examples, desc=split, leave=False, disable=None):
        if id(one) not in made:  # an epoch may hold one several times
            made[id(one)] = cut(one, lambda text: encoder.length(text) <= limit, split == "train")
        found = made[id(one)]
        if found is not one:
            counts[one.task + "_cut"] = counts.get(one.task + "_cut", 0) + 1
            if one.task == "squad" and not any(answer in found.text for answer in one.references):
                counts["squad_answer_lost"] = counts.get("squad_answer_lost", 0) + 1
    return [made[id(one)] for one in examples]


def shorten_target(text: str, limit: int, encoder: Encoder) -> str:
    """Returns the longest beginning of a text that fits, at least one word."""
    words = text.split()
    while len(words) > 1 and encoder.length(" ".join(words)) > limit:
        words.pop()
    return " ".join(words)


def write_split(args: argparse.Namespace, split: str, examples: List[Example], encoder: Encoder) -> None:
    """Writes a split's symbols and its side file."""
    targets = [shorten_target(one.references[0], args.target_limit, encoder) for one in examples]
    prefix = os.path.join(args.out, "ids", split)
    write_text(prefix + ".source", "".join(encoder(one.head + one.text) + "\n" for one in examples))
    write_text(prefix + ".target", "".join(encoder(text) + "\n" for text in targets))
    lines = []
    for number, one in enumerate(examples):
        entry = {"id": number, "task": one.task, "key": one.key, "references": list(one.references)}
        entry.update({"group": one.group} if one.group else {})
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    write_text(os.path.join(args.out, split + ".jsonl"), "".join(lines))


def binarise(args: argparse.Namespace) -> None:
    """Runs fairseq-preprocess.

    Raises:
        InputError: it failed.
    """
    prefix, made = os.path.join(args.out, "ids"), os.path.join(args.out, "data-bin")
    shutil.rmtree(made, ignore_errors=True)  # of a run that was stopped
    words = [sys.executable, "-m", "fairseq_cli.preprocess", "--user-dir", os.path.join(ROOT, "sd_fairseq")]
    words += ["--task", "switchable_translation", "-s", "source", "-t", "target"]
    for split in SPLITS:
        tests = [os.path.join(prefix, name) for name in ("test", "unseen")[: 1 + bool(args.unseen)]]
        words += ["--{}pref".format(split), ",".join(tests) if split == "test" else os.path.join(prefix, split)]
    words += ["--srcdict", args.dictionary, "--joined-dictionary", "--destdir", made]
    places = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": places, "PYTHONWARNINGS": "ignore"}
    log = os.path.join(args.out, "preprocess.log")
    try:
        run_command(words, log, None, 0, env=environment)
    except StepError as error:
        raise InputError("{}: {}".format(log, error)) from error
    for name in os.listdir(made):
        if name.startswith("test1."):  # fairseq's name of a second test set
            os.rename(os.path.join(made, name), os.path.join(made, "unseen" + name[len("test1") :]))


def read_all(args: argparse.Namespace) -> Tuple[Dict[str, Splits], Dict[str, str]]:
    """Reads the tasks whose folders are given; returns their splits, and a hash of each task's files.

    Raises:
        InputError: a folder that cannot be used.
    """
    found, hashes = {}, {}
    for task in tasks.TASKS:
        folder = getattr(args, task)
        if folder:
            if not os.path.isdir(folder):
                raise InputError("--{} {}: no such folder".format(task, folder))
            found[task] = read_task(task, folder, args.valid)
            names = [name for name in sorted(os.listdir(folder)) if "train" in name or "dev" in name or "valid" in name]
            hashes[task] = hash_files([os.path.join(folder, name) for name in names])
    if args.squad:
        found["squad"]["test"] = spread(found["squad"]["test"], args.squad_test)
    return found, hashes


def describe(args: argparse.Namespace, weights: Dict[str, int], hashes: Dict[str, str]) -> Dict[str, Any]:
    """Says what the prepared data depend on."""
    about = {name: getattr(args, name) for name in ("limit", "target_limit", "valid", "squad_test", "seed")}
    files = {name: hash_files([getattr(args, name)]) for name in ("tokenizer", "dictionary")}
    if args.unseen:
        files.update(unseen=hash_files([args.unseen]), unseen_count=args.unseen_count)
    return {**about, "weights": weights, "sources": hashes, **files}


def work(args: argparse.Namespace) -> None:
    """Prepares the data.

    Raises:
        InputError: something about the input that its owner can mend.
    """
    for name in ("tokenizer", "dictionary", "unseen"):
        if getattr(args, name) is not None and not os.path.isfile(getattr(args, name)):
            raise InputError("--{} {}: no such file".format(name, getattr(args, name)))
    if args.limit < 16 or args.target_limit < 2 or args.valid < 1:
        raise InputError("--limit 16 or more, --target-limit 2 or more and --valid 1 or more are needed")
    encoder = Encoder(args.tokenizer)
    found, hashes = read_all(args)
    weights = parse_weights(args.weights, list(found))
    settings = describe(args, weights, hashes)
    place = os.path.join(args.out, MADE_BY)
    with locked(args.out):
        try:
            made = read_json(place)
        except StepError as error:
            raise InputError(str(error)) from error
        if made is not None:
            difference = find_difference(made.get("settings"), settings)
            if difference:
                raise InputError("{}: made with {}; remove the folder or give another OUT".format(place, difference))
        else:
            made = prepare(args, found, weights, encoder)
            write_json(place, {"settings": settings, **made})
    for split in made["examples"]:
        each = ", ".join("{} {:,}".format(task, count) for task, count in made["examples"][split].items())
        print("{}: {}".format(split, each))
    print("cut to {} tokens: {}".format(args.limit, made["cut"]))


def prepare(
    args: argparse.Namespace, found: Dict[str, Splits], weights: Dict[str, int], encoder: Encoder
) -> Dict[str, Any]:
    """Writes everything but ``prepared.json``; returns what that says beside the settings."""
    os.makedirs(os.path.join(args.out, "ids"), exist_ok=True)
    splits = {"train": mix({task: splits["train"] for task, splits in found.items()}, weights, args.seed)}
    for split in ("valid", "test"):
        splits[split] = [one for task in found for one in found[task][split]]
    if args.unseen:
        splits["unseen"] = tasks.read_unseen(args.unseen, args.unseen_count)
    examples: Dict[str, Dict[str, int]] = {}
    counts: Dict[str, Dict[str, int]] = {}
    for split in splits:
        counts[split] = {}
        splits[split] = shorten(splits[split], split, args.limit, encoder, counts[split])
        write_split(args, split, splits[split], encoder)
        names = [tasks.UNSEEN] if split == "unseen" else list(found)
        examples[split] = {task: sum(one.task == task for one in splits[split]) for task in names}
    copy_whole(args.tokenizer, os.path.join(args.out, "tokenizer" + os.path.splitext(args.tokenizer)[1]))
    binarise(args)
    total = sum(weights.values())
    return {
        "examples": examples,
        "pools": {task: len(splits["train"]) for task, splits in found.items()},
        "shares": {task: weights[task] / total for task in found},
        "cut": counts,
    }


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", metavar="OUT", help="folder to make")
    add("--tokenizer", required=True, metavar="FILE", help="tokenizer.json or spiece.model of the imported model")
    add("--dictionary", required=True, metavar="FILE", help="dict.txt of the imported model")
    add("--sst2", metavar="DIR", help="train.tsv and dev.tsv of GLUE, gzipped or not")
    add("--scitldr", metavar="DIR", help="train.jsonl and dev.jsonl of SciTLDR-A")
    add("--squad", metavar="DIR", help="train-v1.1.json (or train-subset-v1.1.json) and dev-v1.1.json")
    debian = os.path.join(ROOT, "examples", "data", "debian")
    add("--debian", metavar="DIR", default=debian, help="train.jsonl and valid.jsonl (default: the shipped ones)")
    add("--unseen", metavar="FILE", help="JSON lines of document and summary (XSum's form), in no training")
    add("--unseen-count", type=int, default=300, metavar="N", help="so many of them (default: %(default)s)")
    text = "examples of an epoch, TASK=N, separated by commas (default: {})"
    default = ",".join("{}={}".format(*one) for one in tasks.WEIGHTS.items())
    add("--weights", default="", help=text.format(default))
    add("--limit", type=int, default=512, help="longest source, in tokens (default: %(default)s)")
    add("--target-limit", type=int, default=128, help="longest target, in tokens (default: %(default)s)")
    add("--valid", type=int, default=300, help="examples a task to tune on, at most (default: %(default)s)")
    add("--squad-test", type=int, default=0, metavar="N", help="so many of SQuAD's dev, evenly spread (default: all)")
    add("--seed", type=int, default=1, help="of the epoch's order (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(run(work, build_parser().parse_args(), "prepare.py"))
