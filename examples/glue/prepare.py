"""Turn GLUE's TSV files (or CSV, JSON lines) into the data folder of fairseq's sentence prediction, in one command.

OUT/input0, OUT/input1   dict.txt and {train,valid,test}.{bin,idx} of the first and, of pairs, the second text
OUT/label                the same for the labels, whose order is the order of the head's outputs
OUT/valid.jsonl          of --hash-split: the held-out examples as raw text, for sd-classify
OUT/prepared.json        where everything came from, counts, and how to encode new text the same way

    prepare.py RTE OUT --train train.tsv --valid dev.tsv --bpe gpt2 --gpt2-folder FOLDER     as BART's recipe
    prepare.py SST-2 OUT --train train.tsv --valid dev.tsv --vocab-size 8000                 a model from scratch
    prepare.py MNLI OUT --hash-split pairs.csv --columns premise hypothesis --label-column label
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
from typing import Callable, Dict, List, Sequence

import sentencepiece
from fairseq.data import Dictionary, indexed_dataset
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.predict.sentence_files import TASKS, Example, SentenceTask, read_examples, shorten

MADE_BY = "prepared.json"
Encode = Callable[[str], str]


def split_by_hash(examples: Sequence[Example], valid_percent: int) -> Dict[str, List[Example]]:
    """Split one file: all examples with the same first text (MNLI's premises come in threes) fall on the same side."""
    splits: Dict[str, List[Example]] = {"train": [], "valid": []}
    for one in examples:
        bucket = int(hashlib.sha256(one.texts[0].encode("utf-8")).hexdigest(), 16) % 100
        splits["valid" if bucket < valid_percent else "train"].append(one)
    for name, part in splits.items():
        if not part:
            message = "--valid-percent {} of {} examples leaves {} empty"
            raise InputError(message.format(valid_percent, len(examples), name))
    return splits


def train_sentencepiece(texts: List[str], folder: str, vocab_size: int) -> str:
    """Train a SentencePiece model, the same one every time; return its path."""
    prefix = os.path.join(folder, "sentencepiece")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=prefix,
            vocab_size=vocab_size,
            character_coverage=1.0,
            shuffle_input_sentence=False,
            max_sentence_length=10 * max(len(text.encode("utf-8")) for text in texts),
            num_threads=1,  # the order of floating-point sums is fixed
            minloglevel=2,
        )
    except RuntimeError as error:
        message = str(error).splitlines()[0].strip()
        raise InputError("--vocab-size {}: {}".format(vocab_size, message)) from error
    os.remove(prefix + ".vocab")
    return prefix + ".model"


def use_sentencepiece(model: str, folder: str) -> Encode:
    """Load a SentencePiece model and write fairseq's dictionary of its pieces; return what encodes a text."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=model)
    except (OSError, RuntimeError) as error:
        raise InputError("{}: no SentencePiece model ({})".format(model, str(error).splitlines()[0])) from error
    ordinary = [i for i in range(len(processor)) if not (processor.is_control(i) or processor.is_unknown(i))]
    with open(os.path.join(folder, "dict.txt"), "w", encoding="utf-8", newline="\n") as text:
        text.writelines("{} 1\n".format(processor.id_to_piece(i)) for i in ordinary)
    return lambda text: " ".join(processor.encode(text, out_type=str))


def use_gpt2(source: str, folder: str) -> Encode:
    """Load GPT-2's BPE and BART's dictionary from a folder of encoder.json, vocab.bpe and dict.txt."""
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        if not os.path.isfile(os.path.join(source, name)):
            raise InputError("{}: no such file; --gpt2-folder needs it".format(os.path.join(source, name)))
    shutil.copyfile(os.path.join(source, "dict.txt"), os.path.join(folder, "dict.txt"))
    bpe = get_encoder(os.path.join(source, "encoder.json"), os.path.join(source, "vocab.bpe"))
    return lambda text: " ".join(map(str, bpe.encode(text)))


def write_binary(path: str, dictionary: Dictionary, lines: Sequence[str], append_eos: bool = True) -> None:
    """Write one line an example as fairseq-preprocess does."""
    builder = indexed_dataset.make_builder(path + ".bin", impl="mmap", vocab_size=len(dictionary))
    for line in lines:
        ids = dictionary.encode_line(line, add_if_not_exist=False, append_eos=append_eos)
        builder.add_item(ids)
    builder.finalize(path + ".idx")


def build(folder: str, splits: Dict[str, List[Example]], task: SentenceTask, options: argparse.Namespace) -> None:
    """Make everything inside `folder`."""
    if options.bpe == "gpt2":
        encode = use_gpt2(options.gpt2_folder, folder)
    else:
        texts = [text for one in splits["train"] for text in one.texts]
        model = options.sentencepiece_model
        if model is None:
            model = train_sentencepiece(texts, folder, options.vocab_size)
        else:
            model = shutil.copyfile(model, os.path.join(folder, "sentencepiece.model"))
        encode = use_sentencepiece(model, folder)
    dictionary = Dictionary.load(os.path.join(folder, "dict.txt"))
    labels = Dictionary()
    for label in task.labels:
        labels.add_symbol(label)
    places = ["input{}".format(index) for index in range(len(task.columns))]
    for place in places + ["label"]:
        os.mkdir(os.path.join(folder, place))
        (labels if place == "label" else dictionary).save(os.path.join(folder, place, "dict.txt"))
    shortened = collections.Counter()
    for split, examples in splits.items():
        pieces = [[encode(text).split(" ") for text in one.texts] for one in examples]
        cut = [shorten(texts, options.max_tokens) for texts in pieces]
        shortened[split] = sum(before != after for before, after in zip(pieces, cut))
        for index, place in enumerate(places):
            lines = [" ".join(texts[index]) for texts in cut]
            write_binary(os.path.join(folder, place, split), dictionary, lines)
        if all(one.label is not None for one in examples):
            write_binary(os.path.join(folder, "label", split), labels, [one.label for one in examples])
    os.remove(os.path.join(folder, "dict.txt"))
    if options.hash_split:
        write_raw(os.path.join(folder, "valid.jsonl"), splits["valid"], task)
    write_record(folder, splits, task, options, shortened)


def write_raw(path: str, examples: Sequence[Example], task: SentenceTask) -> None:
    """Write examples as JSON lines."""
    with open(path, "w", encoding="utf-8", newline="\n") as text:
        for one in examples:
            row = {"id": one.id, **dict(zip(task.columns, one.texts)), task.label_column: one.label}
            text.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_record(
    folder: str,
    splits: Dict[str, List[Example]],
    task: SentenceTask,
    options: argparse.Namespace,
    shortened: Dict[str, int],
) -> None:
    """Write prepared.json."""
    record = {
        "task": options.task,
        **dataclasses.asdict(task),
        "bpe": options.bpe,
        "max_tokens": options.max_tokens,
        "split": "hash of the first text" if options.hash_split else "files",
        "examples": {name: len(examples) for name, examples in splits.items()},
        "labels_of": {
            name: dict(sorted(collections.Counter(str(one.label) for one in examples).items()))
            for name, examples in splits.items()
        },
        "shortened": dict(shortened),
    }
    with open(os.path.join(folder, MADE_BY), "w", encoding="utf-8") as text:
        json.dump(record, text, indent=1)
        text.write("\n")


def read_splits(options: argparse.Namespace, task: SentenceTask) -> Dict[str, List[Example]]:
    """Read all input before anything is written."""
    if options.hash_split:
        return split_by_hash(read_examples(options.hash_split, task), options.valid_percent)
    if not (options.train and options.valid):
        raise InputError("give --train and --valid, or --hash-split")
    splits = {"train": read_examples(options.train, task), "valid": read_examples(options.valid, task)}
    if options.test:
        splits["test"] = read_examples(options.test, task, needs_labels=False)
    return splits


def prepare(options: argparse.Namespace) -> Dict[str, List[Example]]:
    """Build OUT in a temporary sibling folder and put it in place when it is whole.

    Raises:
        InputError: input that cannot be used, or OUT is somebody else's folder.
    """
    preset = TASKS[options.task]
    task = SentenceTask(
        tuple(options.columns or preset.columns), options.label_column or preset.label_column, preset.labels
    )
    if options.bpe == "gpt2" and not options.gpt2_folder:
        raise InputError("--bpe gpt2 needs --gpt2-folder, with encoder.json, vocab.bpe and dict.txt")
    out = os.path.abspath(options.out)
    if os.path.lexists(out) and not os.path.isfile(os.path.join(out, MADE_BY)):
        if not os.path.isdir(out) or os.listdir(out):
            raise InputError("{}: was not made by this script; give an empty or a new folder".format(out))
    splits = read_splits(options, task)
    os.makedirs(os.path.dirname(out), exist_ok=True)
    workshop = tempfile.mkdtemp(prefix=".{}.".format(os.path.basename(out)), dir=os.path.dirname(out))
    try:
        fresh, old = os.path.join(workshop, "fresh"), os.path.join(workshop, "old")
        os.mkdir(fresh)
        build(fresh, splits, task, options)
        if os.path.isdir(out):
            os.replace(out, old)
        os.replace(fresh, out)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return splits


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS), help="columns and labels of its files")
    parser.add_argument("out", metavar="OUT", help="folder to make")
    for split in ("train", "valid", "test"):
        parser.add_argument("--" + split, metavar="FILE", help="the {} examples".format(split))
    parser.add_argument("--hash-split", metavar="FILE", help="one file of all examples, split by its first texts")
    parser.add_argument("--valid-percent", type=int, default=10, help="share of --hash-split that is held out")
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="columns of the texts, if other than GLUE's")
    parser.add_argument("--label-column", metavar="NAME", help="column of the label, if another than GLUE's")
    kinds = ("sentencepiece", "gpt2")
    parser.add_argument("--bpe", choices=kinds, default=kinds[0], help="default: %(default)s")
    parser.add_argument("--gpt2-folder", metavar="FOLDER", help="encoder.json, vocab.bpe and BART's dict.txt")
    parser.add_argument("--vocab-size", type=int, default=8000, help="SentencePiece pieces (default: %(default)s)")
    parser.add_argument("--sentencepiece-model", metavar="FILE", help="take this one instead of training one")
    parser.add_argument("--max-tokens", type=int, default=0, help="cut longer examples to this many tokens; 0 = never")
    return parser


def main() -> None:
    """Parse the command line, prepare the data and report bad input in one line."""
    try:
        splits = prepare(build_parser().parse_args())
    except InputError as error:
        sys.exit("prepare.py: error: {}".format(error))
    print(", ".join("{} {}".format(len(examples), name) for name, examples in splits.items()))


if __name__ == "__main__":
    main()
