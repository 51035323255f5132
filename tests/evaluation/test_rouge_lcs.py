"""ROUGE-L's longest common subsequence: the one that ROUGE-1.5.5 picks, in little memory; and what cannot score."""

import random
import tracemalloc

import pytest
from traces import make_record

from sd_fairseq.evaluation.report import main as report
from sd_fairseq.evaluation.rouge import main
from sd_fairseq.evaluation.rouge_1_5_5 import _mark_common
from sd_fairseq.evaluation.rouge_words import count_unscorable


def mark_by_the_whole_table(reference, hypothesis):
    """ROUGE-1.5.5's backtracking over the table that everybody knows."""
    table = [[0] * (len(hypothesis) + 1) for _ in range(len(reference) + 1)]
    for i, word in enumerate(reference, 1):
        for j, other in enumerate(hypothesis, 1):
            same = table[i - 1][j - 1] + 1
            table[i][j] = same if word == other else max(table[i - 1][j], table[i][j - 1])
    marked, i, j = [False] * len(reference), len(reference), len(hypothesis)
    while i and j:
        if reference[i - 1] == hypothesis[j - 1]:
            i, j = i - 1, j - 1
            marked[i] = True
        elif table[i - 1][j] >= table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return marked


@pytest.mark.parametrize("words", [1, 2, 3, 6, 30])
def test_the_subsequence_is_the_one_that_the_whole_table_gives(words):
    generator = random.Random(words)
    for _ in range(300):
        sides = [[str(generator.randrange(words)) for _ in range(generator.randrange(25))] for _ in range(2)]
        marked = [False] * len(sides[0])
        _mark_common(*sides, marked)
        assert marked == mark_by_the_whole_table(*sides), sides


def test_memory_grows_with_the_length_and_not_with_its_square():
    peaks = []
    for length in (1000, 4000):
        generator = random.Random(length)
        sides = [[str(generator.randrange(500)) for _ in range(length)] for _ in range(2)]
        tracemalloc.start()
        _mark_common(*sides, [False] * length)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 8 * peaks[0], "the square would be 16 times"
    assert peaks[1] < 4000 * 500, "a table of 4,000 x 4,000 needs 128 MB"


@pytest.mark.parametrize(
    "text, unscorable",
    [("\u043a", 1), ("\u65e5\u672c", 1), ("...", 1), ("<a>", 1), ("\u65e5a", 0), ("", 0), (" ", 0), ("7", 0)],
)
def test_what_has_no_word_is_counted(text, unscorable):
    assert count_unscorable([text, "word"]) == unscorable


def test_the_commands_say_how_many_lines_can_only_score_0(tmp_path, capsys):
    texts = ["\u043a\u043e\u0448\u043a\u0430 \u0438\u0434\u0451\u0442", "a cat"]
    (tmp_path / "texts").write_text("\n".join(texts) + "\n", encoding="utf-8")
    pytest.importorskip("nltk")
    assert main([str(tmp_path / "texts")] * 2 + ["--backend", "port"]) == 0
    assert "warning: 2 line(s) without a word" in capsys.readouterr().err
    from sd_fairseq.decision.trace import write_trace

    lines = [f"T-{n}\t{text}\nD-{n}\t-0.1\t{text}\n" for n, text in enumerate(texts)]
    (tmp_path / "out").write_text("".join(lines), encoding="utf-8")
    write_trace(str(tmp_path / "trace"), [make_record(0), make_record(1)])
    places = [str(tmp_path / name) for name in ("out", "trace", "r")]
    assert report(["--add", "x", *places[:2], "--output-dir", places[2]]) == 0
    assert "x: 2 line(s) without a word" in capsys.readouterr().err
