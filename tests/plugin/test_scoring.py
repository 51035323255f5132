"""The scorer `sd_rouge` gives fairseq-generate files2rouge's digits."""

import pytest

pytest.importorskip("fairseq")
from fairseq import scoring  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from fairseq.options import get_generation_parser, parse_args_and_arch  # noqa: E402

import sd_fairseq.plugin.scoring  # noqa: E402, F401
from sd_fairseq.evaluation.rouge import rouge  # noqa: E402
from sd_fairseq.plugin.guards.errors import InputError  # noqa: E402

PAIRS = [
    ("the cat sat . it slept .", "a cat was sitting ."),
    ("dogs barked", "the dogs bark ."),
    ("one two", "one two"),
]


def build(*flags):
    """Build the scorer as fairseq-generate does, from its command line."""
    arguments = ["data", "--path", "model.pt", "--scoring", "sd_rouge", *flags]
    parsed = parse_args_and_arch(get_generation_parser(), arguments)
    return scoring.build_scorer(convert_namespace_to_omegaconf(parsed).scoring, None)


def test_the_scorer_gives_the_digits_of_the_report():
    scorer = build()
    for pair in PAIRS:
        scorer.add_string(*pair)
    references, hypotheses = zip(*sorted(PAIRS))  # the digits do not depend on the order of the batches
    figures = [100 * score.f.average for score in rouge(hypotheses, references).values()]
    assert scorer.score() == figures[0]
    assert scorer.result_string().startswith("R-1 {:.2f} R-2 {:.2f} R-L {:.2f} sd_rouge|".format(*figures))
    assert "|stem:yes|exceptions:no|ptb:no|eos:.|bootstrap:1000|n:3|version:" in scorer.result_string()


def test_an_empty_hypothesis_scores_zero():
    scorer = build()
    scorer.add_string("one two", "")
    assert scorer.score() == 0
    assert "|n:1|" in scorer.result_string()


def test_options_reach_the_scorer(tmp_path):
    pytest.importorskip("pysbd", reason="needs the package pysbd")
    (tmp_path / "verb.exc").write_text("slept sleep\n", encoding="utf-8")
    scorer = build("--sd-rouge-ptb", "--sd-rouge-eos", "!", "--sd-rouge-exceptions", str(tmp_path))
    scorer.add_string("It slept.", "Sleep.")
    assert scorer.ref == ["It slept ."]
    assert scorer.result_string().startswith("R-1 66.67 ")
    assert "|exceptions:yes|ptb:yes|eos:!|" in scorer.result_string()


def test_missing_irregular_forms_show_before_generation(tmp_path):
    with pytest.raises(InputError, match=r"holds no \*\.exc files"):
        build("--sd-rouge-exceptions", str(tmp_path))
