"""Texts that fairseq generated score the same in `sd-report` and in `--scoring sd_rouge`, whatever their order."""

import json
import random

import pytest
from traces import make_record, make_texts, spoil, write_output

from sd_fairseq.decision.trace import write_trace
from sd_fairseq.evaluation.generated_scores import Scoring
from sd_fairseq.evaluation.report import main


@pytest.mark.parametrize("ptb", [False, True])
def test_the_command_and_the_scorer_agree_in_digits_and_signature(tmp_path, ptb):
    pytest.importorskip("fairseq")
    if ptb:
        pytest.importorskip("pysbd", reason="needs the package pysbd")
    from sd_fairseq.plugin.scoring import SdRougeConfig, SdRougeScorer

    references = {index: f"It isn't {text}. The <<unk>> (end)." for index, text in make_texts(20).items()}
    hypotheses = spoil({index: text.replace("<<unk>>", "<unk>") for index, text in references.items()}, 0.3)
    write_output(tmp_path / "gen", hypotheses, references)
    write_trace(str(tmp_path / "trace"), [make_record(index) for index in references])
    command = ["--dense", str(tmp_path / "gen"), str(tmp_path / "trace"), "--output-dir", str(tmp_path / "out")]
    assert main(command + ["--ptb"] * ptb) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    scorer = SdRougeScorer(SdRougeConfig(sd_rouge_ptb=ptb))
    order = list(references)
    random.Random(3).shuffle(order)  # fairseq prints its batches in an order of its own
    for index in order:
        scorer.add_string(references[index], hypotheses[index])
    assert scorer.score() == report["dense"]["rouge1"]
    signature = scorer.result_string().split(" ", 6)[-1]
    assert report["signature"].startswith(signature + "|") and f"ptb:{'yes' if ptb else 'no'}" in signature


def test_an_unknown_word_cuts_no_text_and_matches_none_of_the_other_side():
    scoring = Scoring()
    reference = scoring.prepare("the <<unk>> cat sat on the mat")
    without, unknown = (scoring.prepare(text) for text in ("the cat sat on the mat", "the <unk> cat sat on the mat"))
    assert scoring.rouge([without], [reference])["rouge1"].f.average == pytest.approx(12 / 13, abs=1e-5)
    assert scoring.rouge([unknown], [reference])["rouge1"].f.average == pytest.approx(12 / 14, abs=1e-5)
