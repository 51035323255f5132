"""Turn SQuAD's JSON files into the data folder of ``--task switchable_squad``, in one command.

OUT/train.json, valid.json   the questions, checked, as they came; test.json likewise, or a fixed part of it
OUT/dict.txt                 fairseq's dictionary, with encoder.json and vocab.bpe, or sentencepiece.model
OUT/cloze.json               with --cloze: questions made of the training contexts themselves, to start a model on
OUT/prepared.json            where everything came from, and counts

    prepare.py OUT --train train-v1.1.json --valid dev-v1.1.json --bpe gpt2 --gpt2-folder FOLDER     as BART
    prepare.py OUT --train train-v1.1.json --vocab-size 8000 --cloze 60000                           from scratch
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
from typing import Any, Dict, List

import sentencepiece

from sd_fairseq.evaluation.squad_data import Question, read_questions
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.squad.offsets import GPT2_FILES, SENTENCEPIECE_FILE, load_tokeniser

MADE_BY = "prepared.json"
CLOZE_WORDS = 10  # on each side of the gap, of which KEPT_SHARE stay: a question repeats some words of its sentence
KEPT_SHARE = 0.6


def take_share(questions: List[Question], share: int) -> List[Question]:
    """Take one question in `share`, by a hash of its id: the same ones whatever their order."""
    taken = [one for one in questions if int(hashlib.sha256(one.id.encode("utf-8")).hexdigest(), 16) % share == 0]
    if not taken:
        raise InputError("--test-share {} of {} questions leaves none".format(share, len(questions)))
    return taken


def to_squad(questions: List[Question]) -> Dict[str, Any]:
    """Return questions as a SQuAD file has them; neighbours with the same context share a paragraph."""
    paragraphs: List[Dict[str, Any]] = []
    for one in questions:
        if not paragraphs or paragraphs[-1]["context"] != one.context:
            paragraphs.append({"context": one.context, "qas": []})
        entry = {"id": one.id, "question": one.text}
        entry["answers"] = [{"text": answer.text, "answer_start": answer.start} for answer in one.answers]
        if one.impossible is not None:
            entry["is_impossible"] = one.impossible
        paragraphs[-1]["qas"].append(entry)
    return {"version": "sd_fairseq", "data": [{"title": "", "paragraphs": paragraphs}]}


def make_cloze(questions: List[Question], count: int) -> Dict[str, Any]:
    """Make questions out of contexts, the same ones every time: some words around a gap; the answer fills the gap.

    Gaps begin with a capital letter or a digit, as most answers do, and are one to four words long.
    """
    chance = random.Random(1)
    contexts = list(dict.fromkeys(one.context for one in questions))
    paragraphs = [{"context": context, "qas": []} for context in contexts]
    words = [list(re.finditer(r"\w+(?:[-'.,]\w+)*", context)) for context in contexts]
    gaps = [[i for i, word in enumerate(found) if re.match(r"[A-Z0-9]", word.group())] for found in words]
    usable = [number for number, found in enumerate(gaps) if found]
    if not usable:
        raise InputError("--cloze {}: no context has a word that begins with a capital or a digit".format(count))
    for serial in range(count):
        number = usable[serial % len(usable)]
        found, context = words[number], contexts[number]
        first = chance.choice(gaps[number])
        last = min(first + chance.choice((0, 0, 1, 1, 2, 3)), len(found) - 1)
        before = [word.group() for word in found[max(0, first - CLOZE_WORDS) : first]]
        after = [word.group() for word in found[last + 1 : last + 1 + CLOZE_WORDS]]
        kept = [[word for word in side if chance.random() < KEPT_SHARE] for side in (before, after)]
        start, end = found[first].start(), found[last].end()
        paragraphs[number]["qas"].append(
            {
                "id": "cloze-{}".format(serial),
                "question": " ".join([*kept[0], "what", *kept[1]]) + "?",
                "answers": [{"text": context[start:end], "answer_start": start}],
            }
        )
    return {"version": "cloze", "data": [{"title": "", "paragraphs": paragraphs}]}


def write_json(path: str, content: Any) -> None:
    """Write one line of JSON."""
    with open(path, "w", encoding="utf-8", newline="\n") as text:
        json.dump(content, text, ensure_ascii=False)
        text.write("\n")


def train_sentencepiece(questions: List[Question], folder: str, vocab_size: int) -> None:
    """Train a SentencePiece model on contexts and questions, the same one every time, and write its dictionary."""
    texts = list(dict.fromkeys(text for one in questions for text in (one.context, one.text)))
    model = os.path.join(folder, SENTENCEPIECE_FILE)
    try:
        with open(model, "wb") as stream:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=stream,
                vocab_size=vocab_size,
                character_coverage=0.9998,
                shuffle_input_sentence=False,
                max_sentence_length=10 * max(len(text.encode("utf-8")) for text in texts),
                num_threads=1,  # the order of floating-point sums is fixed
                minloglevel=2,
            )
    except RuntimeError as error:
        raise InputError("--vocab-size {}: {}".format(vocab_size, str(error).splitlines()[0].strip())) from error
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    ordinary = [i for i in range(len(processor)) if not (processor.is_control(i) or processor.is_unknown(i))]
    with open(os.path.join(folder, "dict.txt"), "w", encoding="utf-8", newline="\n") as text:
        text.writelines("{} 1\n".format(processor.id_to_piece(i)) for i in ordinary)


def copy_gpt2(source: str, folder: str) -> None:
    """Copy GPT-2's BPE and BART's dictionary."""
    for name in (*GPT2_FILES, "dict.txt"):
        path = os.path.join(source, name)
        if not os.path.isfile(path):
            raise InputError("{}: no such file; --gpt2-folder needs it".format(path))
        shutil.copyfile(path, os.path.join(folder, name))
    load_tokeniser(folder).tokenise("The files are whole.")


def build(folder: str, splits: Dict[str, List[Question]], options: argparse.Namespace) -> None:
    """Make everything inside `folder`."""
    if options.bpe == "gpt2":
        copy_gpt2(options.gpt2_folder, folder)
    else:
        train_sentencepiece(splits["train"], folder, options.vocab_size)
    for split, questions in splits.items():
        write_json(os.path.join(folder, split + ".json"), to_squad(questions))
    if options.cloze:
        write_json(os.path.join(folder, "cloze.json"), make_cloze(splits["train"], options.cloze))
    record = {
        "bpe": options.bpe,
        "questions": {split: len(questions) for split, questions in splits.items()},
        "unanswerable": {split: sum(not one.answers for one in part) for split, part in splits.items()},
        "cloze": options.cloze,
    }
    write_json(os.path.join(folder, MADE_BY), record)


def prepare(options: argparse.Namespace) -> Dict[str, List[Question]]:
    """Build OUT in a temporary sibling folder and put it in place when it is whole.

    Raises:
        InputError: input that cannot be used, or OUT is somebody else's folder.
    """
    if options.bpe == "gpt2" and not options.gpt2_folder:
        raise InputError("--bpe gpt2 needs --gpt2-folder, with encoder.json, vocab.bpe and dict.txt")
    out = os.path.abspath(options.out)
    if os.path.lexists(out) and not os.path.isfile(os.path.join(out, MADE_BY)):
        if not os.path.isdir(out) or os.listdir(out):
            raise InputError("{}: was not made by this script; give an empty or a new folder".format(out))
    files = {"train": options.train, "valid": options.valid, "test": options.test}
    splits = {split: read_questions(path) for split, path in files.items() if path}
    if options.test_share < 1:
        raise InputError("--test-share {} is not 1 or more".format(options.test_share))
    if options.test:
        splits["test"] = take_share(splits["test"], options.test_share)
    os.makedirs(os.path.dirname(out), exist_ok=True)
    workshop = tempfile.mkdtemp(prefix=".{}.".format(os.path.basename(out)), dir=os.path.dirname(out))
    try:
        fresh, old = os.path.join(workshop, "fresh"), os.path.join(workshop, "old")
        os.mkdir(fresh)
        build(fresh, splits, options)
        if os.path.isdir(out):
            os.replace(out, old)
        os.replace(fresh, out)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return splits


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--train", required=True, metavar="FILE", help="SQuAD 1.1 or 2.0 JSON, plain or .gz")
    parser.add_argument("--valid", metavar="FILE", help="likewise, for validation while training")
    parser.add_argument("--test", metavar="FILE", help="likewise, to be scored at the end")
    parser.add_argument("--test-share", type=int, default=1, metavar="N", help="one test question in N (default: all)")
    kinds = ("sentencepiece", "gpt2")
    parser.add_argument("--bpe", choices=kinds, default=kinds[0], help="default: %(default)s")
    parser.add_argument("--gpt2-folder", metavar="FOLDER", help="encoder.json, vocab.bpe and BART's dict.txt")
    parser.add_argument("--vocab-size", type=int, default=8000, help="SentencePiece pieces (default: %(default)s)")
    parser.add_argument("--cloze", type=int, default=0, metavar="N", help="make N cloze questions (default: none)")
    return parser


def main() -> None:
    """Parse the command line, prepare the data and report bad input in one line."""
    try:
        splits = prepare(build_parser().parse_args())
    except InputError as error:
        sys.exit("prepare.py: error: {}".format(error))
    print(", ".join("{} {}".format(len(questions), name) for name, questions in splits.items()))


if __name__ == "__main__":
    main()
