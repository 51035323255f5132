"""Turn .jsonl.gz pairs into raw text, SentencePiece pieces and fairseq's binary format.

OUT/raw/SPLIT.{source,target}     one text a line       OUT/sentencepiece.model   trained on the train texts
OUT/pieces/SPLIT.{source,target}  its pieces            OUT/dict.txt              the same vocabulary for fairseq
OUT/data-bin                      what fairseq reads    OUT/stamp.json            made last: inputs and options by hash
OUT/lead/{train,valid}.*          document -> its first pieces, OUT/lead-bin the same for fairseq: a warm start that
                                  teaches a fresh model to read its source, where BART has its denoising pre-training
OUT/span/{train,valid}.*          with --span: document -> consecutive pieces of it, OUT/span-bin likewise: a second
                                  step, in which where to read follows from what was read last
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zlib
from typing import Dict, Iterator, List, Tuple

import sentencepiece
from tqdm import tqdm

SPLITS = ("train", "valid", "test")
SIDES = {"source": "document", "target": "summary"}
STAMP_NAME = "stamp.json"
LAYOUT_VERSION = 2
LEAD_PIECES = 16
SPAN_WITHIN = 190  # pieces; a model of 192 positions sees all of the span
VOCABULARY_FILES = ("sentencepiece.model", "dict.txt")
Pairs = List[Tuple[str, str]]


class DataError(ValueError):
    """Something about the input that its owner can mend; the message is one line."""


def parse_pair(line: str, place: str) -> Tuple[str, str]:
    """Check one JSON line and return its two texts with every run of white space made one blank.

    Args:
        line: the line as read.
        place: file name and line number, for the message.

    Returns:
        Document and summary, neither empty.

    Raises:
        DataError: empty line, not a JSON object, or a text that is missing, not a string or blank.
    """
    if not line.strip():
        raise DataError("{}: empty line, expected a JSON object".format(place))
    try:
        pair = json.loads(line)
    except ValueError as error:
        raise DataError("{}: not valid JSON ({})".format(place, error)) from error
    if not isinstance(pair, dict):
        raise DataError("{}: found a JSON {}, expected an object".format(place, type(pair).__name__))
    texts = []
    for key in SIDES.values():
        if key not in pair:
            raise DataError("{}: no key {!r}, found {}".format(place, key, ", ".join(sorted(pair)) or "none"))
        if not isinstance(pair[key], str):
            raise DataError("{}: {!r} is a {}, expected a string".format(place, key, type(pair[key]).__name__))
        text = " ".join(pair[key].split())
        if not text:
            raise DataError("{}: {!r} is empty".format(place, key))
        texts.append(text)
    return texts[0], texts[1]


def iterate_lines(path: str) -> Iterator[str]:
    """Yield the lines of a gzip file; what gzip or UTF-8 cannot read becomes a DataError with the line number."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
            for line in lines:
                number += 1
                yield line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError("{}:{}: cannot be read as gzipped UTF-8 text ({})".format(path, number + 1, error)) from error


def read_pairs(path: str) -> Pairs:
    """Read all (document, summary) pairs of a .jsonl.gz file."""
    lines = tqdm(iterate_lines(path), desc="reading " + os.path.basename(path), unit=" pairs", disable=None)
    pairs = [parse_pair(line, "{}:{}".format(path, number)) for number, line in enumerate(lines, start=1)]
    if not pairs:
        raise DataError("{}: holds no pairs".format(path))
    return pairs


def write_lines(path: str, lines: List[str]) -> None:
    """Write one text a line with Unix line ends."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as text:
        text.writelines(line + "\n" for line in lines)


def train_sentencepiece(texts: List[str], folder: str, vocab_size: int, model_type: str):
    """Train a SentencePiece model, the same one every time, and write it with fairseq's dictionary beside it.

    Args:
        texts: training texts of both sides.
        folder: where `sentencepiece.model` and `dict.txt` go.
        vocab_size: pieces, counting SentencePiece's own three special ones.
        model_type: `unigram` or `bpe`.

    Returns:
        The loaded processor.
    """
    prefix = os.path.join(folder, "sentencepiece")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=prefix,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=1.0,
            shuffle_input_sentence=False,
            max_sentence_length=10 * max(len(text.encode("utf-8")) for text in texts),
            num_threads=1,  # the order of floating-point sums is fixed
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError("--vocab-size {}: {}".format(vocab_size, str(error).splitlines()[0].strip())) from error
    os.remove(prefix + ".vocab")
    processor = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
    # fairseq puts its own <s> <pad> </s> <unk> first; SentencePiece's are control or unknown pieces
    ordinary = [i for i in range(len(processor)) if not (processor.is_control(i) or processor.is_unknown(i))]
    write_lines(os.path.join(folder, "dict.txt"), ["{} 1".format(processor.id_to_piece(i)) for i in ordinary])
    return processor


def encode_splits(processor, splits: Dict[str, Pairs], folder: str) -> None:
    """Write the texts of every split as pieces separated by blanks."""
    for name, pairs in splits.items():
        for column, side in enumerate(SIDES):
            texts = tqdm([pair[column] for pair in pairs], desc="encoding {}.{}".format(name, side), disable=None)
            pieces = [" ".join(processor.encode(text, out_type=str)) for text in texts]
            write_lines(os.path.join(folder, "pieces", "{}.{}".format(name, side)), pieces)


def write_lead(folder: str) -> None:
    """Write the warm start's pairs: every document and its first pieces."""
    for name in ("train", "valid"):
        with open(os.path.join(folder, "pieces", name + ".source"), encoding="utf-8") as text:
            documents = text.read().splitlines()
        write_lines(os.path.join(folder, "lead", name + ".source"), documents)
        leads = [" ".join(document.split(" ")[:LEAD_PIECES]) for document in documents]
        write_lines(os.path.join(folder, "lead", name + ".target"), leads)


def write_span(folder: str) -> None:
    """Write the second step's pairs: every document and pieces of it from the beginning of a word drawn by its line."""
    for name in ("train", "valid"):
        with open(os.path.join(folder, "pieces", name + ".source"), encoding="utf-8") as text:
            documents = text.read().splitlines()
        write_lines(os.path.join(folder, "span", name + ".source"), documents)
        spans = []
        for line, document in enumerate(documents):
            pieces = document.split(" ")
            last = max(1, min(len(pieces), SPAN_WITHIN) - LEAD_PIECES + 1)
            starts = [place for place in range(last) if pieces[place].startswith("\u2581")] or [0]
            start = random.Random(line).choice(starts)
            spans.append(" ".join(pieces[start : start + LEAD_PIECES]))
        write_lines(os.path.join(folder, "span", name + ".target"), spans)


def binarise(folder: str, texts: str, splits: Tuple[str, ...], destination: str) -> None:
    """Run fairseq-preprocess with one dictionary for both sides; show its output only when it fails.

    Args:
        folder: holds `dict.txt`.
        texts: folder in it, of SPLIT.source and SPLIT.target.
        splits: names of the splits.
        destination: folder in it to make.
    """
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--source-lang", "source", "--target-lang", "target"]
    for split in splits:
        command += ["--{}pref".format(split), os.path.join(folder, texts, split)]
    command += ["--joined-dictionary", "--srcdict", os.path.join(folder, "dict.txt")]
    command += ["--destdir", os.path.join(folder, destination), "--workers", "1"]
    outcome = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if outcome.returncode != 0:
        sys.stderr.write(outcome.stdout.decode("utf-8", "replace"))
        raise DataError("fairseq-preprocess failed with exit code {}".format(outcome.returncode))


def reuse_sentencepiece(vocabulary: str, folder: str):
    """Take model and dictionary of a folder made before, so that its models can read the new data.

    Args:
        vocabulary: the folder.
        folder: where copies go.

    Returns:
        The loaded processor.
    """
    try:
        for name in VOCABULARY_FILES:
            shutil.copyfile(os.path.join(vocabulary, name), os.path.join(folder, name))
    except OSError as error:
        raise DataError("--vocabulary {}: {}".format(vocabulary, error)) from error
    return sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, VOCABULARY_FILES[0]))


def describe_inputs(inputs: Dict[str, str], vocab_size: int, model_type: str) -> Dict[str, object]:
    """Return what the result depends on: contents of the inputs, options, layout."""
    hashes = {}
    for name, path in inputs.items():
        try:
            with open(path, "rb") as data:
                hashes[name] = hashlib.sha256(data.read()).hexdigest()
        except OSError as error:
            raise DataError("{}: {}".format(path, error.strerror)) from error
    return {"layout": LAYOUT_VERSION, "sha256": hashes, "vocab_size": vocab_size, "model_type": model_type}


def is_complete(out: str, stamp: Dict[str, object]) -> bool:
    """Tell whether `out` holds all files, made from the inputs and options of `stamp`."""
    try:
        with open(os.path.join(out, STAMP_NAME), encoding="utf-8") as found:
            if json.load(found) != stamp:
                return False
    except (OSError, ValueError):
        return False
    names = list(VOCABULARY_FILES)
    for split in SPLITS:
        for side in SIDES:
            names += ["{}/{}.{}".format(folder, split, side) for folder in ("raw", "pieces")]
            names += ["data-bin/{}.source-target.{}.{}".format(split, side, end) for end in ("bin", "idx")]
            for step in () if split == "test" else ("lead", "span") if "span" in stamp else ("lead",):
                names.append("{}/{}.{}".format(step, split, side))
                names += ["{}-bin/{}.source-target.{}.{}".format(step, split, side, end) for end in ("bin", "idx")]
    return all(os.path.isfile(os.path.join(out, name)) for name in names)


def build(folder: str, inputs: Dict[str, str], stamp: Dict[str, object], vocabulary: str, span: bool) -> None:
    """Make everything inside `folder`, the stamp last."""
    splits = {name: read_pairs(path) for name, path in inputs.items()}
    for name, pairs in splits.items():
        for column, side in enumerate(SIDES):
            write_lines(os.path.join(folder, "raw", "{}.{}".format(name, side)), [pair[column] for pair in pairs])
    if vocabulary:
        processor = reuse_sentencepiece(vocabulary, folder)
    else:
        texts = [text for pair in splits["train"] for text in pair]
        print("training SentencePiece on {:,} texts".format(len(texts)), file=sys.stderr)
        processor = train_sentencepiece(texts, folder, stamp["vocab_size"], stamp["model_type"])
    encode_splits(processor, splits, folder)
    print("running fairseq-preprocess", file=sys.stderr)
    binarise(folder, "pieces", SPLITS, "data-bin")
    write_lead(folder)
    binarise(folder, "lead", ("train", "valid"), "lead-bin")
    if span:
        write_span(folder)
        binarise(folder, "span", ("train", "valid"), "span-bin")
    with open(os.path.join(folder, STAMP_NAME), "w", encoding="utf-8") as text:
        json.dump(stamp, text, indent=1)


def prepare(data: str, out: str, vocab_size: int, model_type: str, vocabulary: str = "", span: bool = False) -> None:
    """Build `out` from the folder `data` in a temporary sibling folder and put it in place when it is whole.

    Args:
        data: folder with train.jsonl.gz, valid.jsonl.gz and test.jsonl.gz.
        out: folder to make; one made earlier from other inputs is replaced, any other is refused.
        vocab_size: SentencePiece vocabulary.
        model_type: `unigram` or `bpe`.
        vocabulary: folder made before whose vocabulary is used; "" = a new one is trained.
        span: make span and span-bin, too.

    Raises:
        DataError: input that cannot be used, or `out` is somebody else's folder.
    """
    inputs = {name: os.path.join(data, name + ".jsonl.gz") for name in SPLITS}
    hashed = {**inputs, **{name: os.path.join(vocabulary, name) for name in VOCABULARY_FILES if vocabulary}}
    stamp = describe_inputs(hashed, vocab_size, model_type)
    if span:
        stamp["span"] = SPAN_WITHIN
    out = os.path.abspath(out)
    if is_complete(out, stamp):
        print("{} is up to date".format(out), file=sys.stderr)
        return
    if os.path.lexists(out) and not os.path.isdir(out):
        raise DataError("{}: exists and is not a folder".format(out))
    if os.path.isdir(out) and os.listdir(out) and not os.path.isfile(os.path.join(out, STAMP_NAME)):
        raise DataError("{}: was not made by this script; give an empty or a new folder".format(out))
    os.makedirs(os.path.dirname(out), exist_ok=True)
    workshop = tempfile.mkdtemp(prefix=".{}.".format(os.path.basename(out)), dir=os.path.dirname(out))
    try:
        fresh, old = os.path.join(workshop, "fresh"), os.path.join(workshop, "old")
        os.mkdir(fresh)
        build(fresh, inputs, stamp, vocabulary, span)
        if os.path.isdir(out):
            os.replace(out, old)
        os.replace(fresh, out)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def main() -> None:
    """Parse the command line, prepare the data and report bad input in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--data", required=True, help="folder of {train,valid,test}.jsonl.gz")
    parser.add_argument("--vocab-size", type=int, default=4000, help="SentencePiece pieces (default: %(default)s)")
    parser.add_argument("--model-type", choices=("unigram", "bpe"), default="unigram", help="default: %(default)s")
    parser.add_argument("--vocabulary", default="", metavar="FOLDER", help="use the one of a folder made before")
    parser.add_argument("--span", action="store_true", help="make the second warm-up step's pairs, too")
    arguments = parser.parse_args()
    try:
        settings = (arguments.vocab_size, arguments.model_type, arguments.vocabulary, arguments.span)
        prepare(arguments.data, arguments.out, *settings)
    except DataError as error:
        sys.exit("prepare.py: error: {}".format(error))


if __name__ == "__main__":
    main()
