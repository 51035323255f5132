"""The ROUGE functions, the printed report and the command `sd-rouge`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sd_fairseq.evaluation.rouge import document_scores, format_report, format_signature, main, rouge

ROOT = Path(__file__).resolve().parents[2]
HYPOTHESES = ["the cat sat on the mat . it slept .", "dogs bark", "a completely different line .", "one two three"]
REFERENCES = ["a cat was sitting on the mat .", "the dogs barked . loudly .", "nothing in common", "one two three"]
REPORT = """\
---------------------------------------------
1 ROUGE-1 Average_R: 0.50000 (95%-conf.int. 0.50000 - 0.50000)
1 ROUGE-1 Average_P: 1.00000 (95%-conf.int. 1.00000 - 1.00000)
1 ROUGE-1 Average_F: 0.66667 (95%-conf.int. 0.66667 - 0.66667)
---------------------------------------------
1 ROUGE-2 Average_R: 0.33333 (95%-conf.int. 0.33333 - 0.33333)
1 ROUGE-2 Average_P: 1.00000 (95%-conf.int. 1.00000 - 1.00000)
1 ROUGE-2 Average_F: 0.50000 (95%-conf.int. 0.50000 - 0.50000)
---------------------------------------------
1 ROUGE-L Average_R: 0.50000 (95%-conf.int. 0.50000 - 0.50000)
1 ROUGE-L Average_P: 1.00000 (95%-conf.int. 1.00000 - 1.00000)
1 ROUGE-L Average_F: 0.66667 (95%-conf.int. 0.66667 - 0.66667)
"""


def run_command(*arguments, python_path=""):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [python_path, str(ROOT)])))
    command = [sys.executable, "-m", "sd_fairseq.evaluation.rouge", *map(str, arguments)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


@pytest.fixture()
def files(tmp_path):
    """Write references and summaries."""
    paths = tmp_path / "reference", tmp_path / "summary"
    for path, lines in zip(paths, (REFERENCES, HYPOTHESES)):
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return paths


def test_equal_texts_score_one():
    for score in rouge(REFERENCES, REFERENCES).values():
        for value in (score.recall, score.precision, score.f):
            assert (value.average, value.low, value.high) == pytest.approx((1, 1, 1), abs=1e-12)


def test_one_document_has_no_interval():
    assert format_report(rouge(["dogs bark"], ["dogs barked very loudly"])) == REPORT


def test_the_average_lies_in_its_interval_near_the_plain_mean():
    means = {name: values.mean() for name, values in document_scores(HYPOTHESES, REFERENCES).items()}
    for name, score in rouge(HYPOTHESES, REFERENCES).items():
        assert score.f.low <= score.f.average <= score.f.high
        assert score.f.average == pytest.approx(means[name], abs=0.02)


def test_document_scores_follow_the_input_order():
    order = [2, 0, 3, 1]
    permuted = document_scores([HYPOTHESES[i] for i in order], [REFERENCES[i] for i in order])
    for name, values in document_scores(HYPOTHESES, REFERENCES).items():
        np.testing.assert_array_equal(values[order], permuted[name])
        assert values.shape == (4,) and values[2] == 0 and values[3] == 1


def test_unequal_counts_are_refused():
    with pytest.raises(ValueError, match="must match, 2 != 1"):
        rouge(["a"], ["a", "b"])


def test_an_empty_line_is_refused_or_ignored_or_counted():
    references, hypotheses = ["a", " ", "c", "d"], ["a", "b", "", "d"]
    with pytest.raises(ValueError, match="Empty reference at line 2. Use `--ignore_empty_reference`"):
        rouge(hypotheses, references)
    with pytest.raises(ValueError, match="Empty summary at line 3. Use `--ignore_empty_summary`"):
        document_scores(hypotheses, references, ignore_empty_reference=True)
    ignored = document_scores(hypotheses, references, ignore_empty_reference=True, ignore_empty_summary=True)
    assert ignored["rouge1"].tolist() == [1, 1]
    assert document_scores(hypotheses, references, count_empty=True)["rouge1"].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("hypotheses, references", [([], []), ([""], ["a"])])
def test_nothing_to_score_is_refused(hypotheses, references):
    with pytest.raises(ValueError, match="nothing to score"):
        rouge(hypotheses, references, ignore_empty_summary=True)


def test_the_longest_ngram_has_at_least_one_word():
    with pytest.raises(ValueError, match="not 0"):
        rouge(["a"], ["a"], max_order=0)
    assert list(rouge(["a"], ["a"], max_order=3, rouge_l=False)) == ["rouge1", "rouge2", "rouge3"]


def test_the_signature_names_what_decides_the_digits():
    signature = format_signature(7, eos=" .", ptb=True)
    assert re.fullmatch(
        r"sd_rouge\|port-of:ROUGE-1\.5\.5\|stem:yes\|exceptions:no\|ptb:yes\|eos:\.\|bootstrap:1000\|n:7\|version:.+",
        signature,
    )


def test_the_command_prints_what_files2rouge_prints(files, tmp_path):
    outcome = run_command("--backend", "port", "-s", tmp_path / "scores", *files)
    report = format_report(rouge(HYPOTHESES, REFERENCES))
    head = "Preparing documents... 0 line(s) ignored\nRunning ROUGE...\n"
    assert re.fullmatch(re.escape(head + report) + r"\nElapsed time: \d+\.\d{3} seconds\n", outcome.stdout)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert (tmp_path / "scores").read_text(encoding="utf-8") == report + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference", "scores", "summary"]


def test_the_flags_reach_the_scores(files, capsys):
    flags = ["-n", "3", "-nol", "-nm", "-e", "nowhere", "-v", "--backend", "port"]
    assert main([*flags, *map(str, files)]) == 0
    printed = capsys.readouterr()
    options = {"max_order": 3, "rouge_l": False, "stemming": False}
    assert format_report(rouge(HYPOTHESES, REFERENCES, " nowhere", **options)) in printed.out
    assert printed.err == format_signature(4, "nowhere", stem=False) + "\n"


def test_ignored_lines_are_counted(files, capsys):
    files[0].write_text("a b\n\nc\n\n", encoding="utf-8")
    assert main(["-ir", "-is", "--backend", "port", *map(str, files)]) == 0
    assert capsys.readouterr().out.startswith("Preparing documents... 2 line(s) ignored\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["absent", "summary"], "absent: cannot be read (No such file or directory)"),
        (["reference", "short"], "line counts must match, 4 != 1"),
        (["reference", "holes"], "Empty summary at line 2. Use `--ignore_empty_summary` to ignore it"),
        (["reference", "summary", "-s", "absent/scores"], "absent/scores: cannot be written"),
        (["reference", "summary", "-a", "-c 90 -n 4"], "-a/--args is for ROUGE-1.5.5 itself"),
        (["reference", "summary", "-n", "0"], "must have at least 1 word, not 0"),
        (["reference", "summary", "--exceptions", "."], "holds no *.exc files"),
    ],
)
def test_bad_input_is_one_line(files, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(files[0].parent)
    Path("short").write_text("a\n", encoding="utf-8")
    Path("holes").write_text("a\n\nb\nc\n", encoding="utf-8")
    Path("scores").write_text("kept", encoding="utf-8")
    assert main(["--backend", "port", "-s", "scores", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.err.startswith("sd-rouge: error: ") and message in printed.err
    assert printed.out == "" and Path("scores").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("arguments", [[], ["-m", "reference", "summary"], ["--backend", "java", "a", "b"]])
def test_bad_arguments_exit_with_two(arguments):
    outcome = run_command(*arguments)
    assert outcome.returncode == 2 and "Traceback" not in outcome.stderr


def write_stand_in(folder, body):
    """Install a package that has files2rouge's name and entry."""
    package = folder / "installed" / "files2rouge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "files2rouge.py").write_text("def run(summ_path, ref_path, **options):\n    " + body, encoding="utf-8")
    return str(package.parent)


def test_the_real_files2rouge_runs_where_it_is_installed(files, tmp_path):
    body = "print(open(summ_path).readline(), options['rouge_args']); open(options['saveto'], 'w').write('saved')"
    installed = write_stand_in(tmp_path, body)
    outcome = run_command("-a", "-c 90 -n 4", "-s", tmp_path / "scores", *files, python_path=installed)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, HYPOTHESES[0] + "\n -c 90 -n 4\n", "")
    assert (tmp_path / "scores").read_text(encoding="utf-8") == "saved"
    assert "ROUGE-L" in run_command("--backend", "port", *files, python_path=installed).stdout


def test_a_failing_or_absent_files2rouge_is_one_line(files, tmp_path):
    installed = write_stand_in(tmp_path, "raise Exception('no Perl\\nhere')")
    outcome = run_command(*files, python_path=installed)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == "sd-rouge: error: files2rouge failed (no Perl here); --backend port does not need it\n"
    assert "files2rouge is not installed" in run_command("--backend", "files2rouge", *files).stderr


def test_lsum_is_printed_beside(files, capsys):
    pytest.importorskip("rouge_score", reason="needs the package rouge-score")
    assert main(["--lsum", "--backend", "port", *map(str, files)]) == 0
    mean = document_scores(HYPOTHESES, REFERENCES)["rougeL"].mean()
    assert "rouge_score rougeLsum F (stemmed, plain mean): {:.5f}\n".format(mean) in capsys.readouterr().out


def test_ptb_tokenises_both_sides(files, capsys):
    pytest.importorskip("pysbd", reason="needs the package pysbd")
    for path in files:
        path.write_text("It rained. We left.\n", encoding="utf-8")
    assert main(["--ptb", "-v", "--backend", "port", *map(str, files)]) == 0
    assert "|ptb:yes|" in capsys.readouterr().err


def test_the_command_refuses_to_save_over_what_it_reads_and_counts_the_lines_that_are_cut(tmp_path, capsys):
    reference, summary = tmp_path / "reference", tmp_path / "summary"
    reference.write_text("the <<unk>> cat\nb\n")
    summary.write_text("the cat\nb\n")
    assert main([str(reference), str(summary), "--backend", "port", "-s", str(reference)]) == 1
    assert reference.read_text() == "the <<unk>> cat\nb\n" and "same file as the input" in capsys.readouterr().err
    assert main([str(reference), str(summary), "--backend", "port"]) == 0
    assert "cuts 1 line(s)" in capsys.readouterr().err
