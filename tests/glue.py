"""Small GLUE files of real texts, and prepare.py run on them in this process."""

import importlib.util
import sys
from unittest import mock

from dropin.workers import ROOT
from pairs import read_pairs

FOLDER = ROOT / "examples" / "glue"


def prepare(*arguments):
    """Runs prepare.py's command line in this process; returns its error line, or None when it ended well."""
    spec = importlib.util.spec_from_file_location("glue_prepare", str(FOLDER / "prepare.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with mock.patch.object(sys, "argv", ["prepare.py", *map(str, arguments)]):
        try:
            module.main()
        except SystemExit as stop:
            return str(stop.code)
    return None


def make_data(folder):
    """Writes {train,valid}.tsv of real texts, labelled by whether they name a library, and prepares ``data``.

    Returns:
        {split: (premise, hypothesis, label) rows}.
    """
    texts = read_pairs()[:60]
    cut = [(" ".join(row["document"].split()[: 5 + 7 * i % 40]), row["summary"]) for i, row in enumerate(texts)]
    named = [(a, b, "entailment" if "librar" in a else "not_entailment") for a, b in cut]
    splits = {"train": named[:40], "valid": named[40:]}
    for split, rows in splits.items():
        lines = ["index\tsentence1\tsentence2\tlabel"]
        lines += ["\t".join([str(i), *row]) for i, row in enumerate(rows)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = ["--train", folder / "train.tsv", "--valid", folder / "valid.tsv"]
    assert prepare("RTE", folder / "data", *files, "--vocab-size", 400, "--max-tokens", 100) is None
    return splits


def read_back(data, place, split):
    """The texts that the binary data hold."""
    import sentencepiece
    from fairseq.data import Dictionary, data_utils

    processor = sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.model"))
    dictionary = Dictionary.load(str(data / place / "dict.txt"))
    dataset = data_utils.load_indexed_dataset(str(data / place / split), dictionary)
    lines = [dictionary.string(dataset[index]) for index in range(len(dataset))]
    return lines if place == "label" else [processor.decode(line.split(" ")) for line in lines]
