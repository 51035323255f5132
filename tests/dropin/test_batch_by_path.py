"""``--sd-batch-by-path``: every document's output and record stay; where it has no effect one warning says so."""

import dataclasses

import pytest
from dropin.commands import AS_SWITCHABLE, OWN, SEARCH, assert_same_hypotheses, read_hypotheses
from dropin.workers import TASK

from sd_fairseq.decision.trace import read_trace

BEAM = ["--beam", "2"]
POOL = ["--sd-batch-by-path", "4"]


def records(path):
    return {one.id: dataclasses.replace(one, seconds=0.0) for one in read_trace(str(path))}


@pytest.mark.parametrize("more", [[], OWN, ["--prefix-size", "2"], ["--sd-path", "random:0.5:3"]], ids=" ".join)
def test_every_document_is_answered_and_traced_as_without(zoo, tmp_path, more):
    found = []
    for pool in ([], POOL):
        trace = tmp_path / f"{len(found)}.jsonl"
        answers = zoo.generate(zoo.mixed, *BEAM, *more, *pool, "--sd-trace", trace)
        found.append((answers, records(trace)))
    assert_same_hypotheses(found[1][0], found[0][0])
    assert found[1][1] == found[0][1]
    assert len({(one.encoder_ffn, one.decoder_ffn, one.token_strategy) for one in found[0][1].values()}) > 1


def test_interactive_answers_its_lines_as_without(zoo):
    lines = ["--input", zoo.texts / "test.source", "--buffer-size", "12"]
    outputs = [
        zoo.command("interactive", *TASK, *SEARCH, *BEAM, "--path", zoo.mixed, *lines, *pool) for pool in ([], POOL)
    ]
    assert_same_hypotheses(read_hypotheses(outputs[1]), read_hypotheses(outputs[0]))


def test_where_no_policy_decides_one_warning_says_so(zoo):
    expected = zoo.generate(zoo.plain, *BEAM, *AS_SWITCHABLE, "--sd-path", "dense")
    assert_same_hypotheses(zoo.generate(zoo.plain, *BEAM, *AS_SWITCHABLE, "--sd-path", "dense", *POOL), expected)
    assert zoo.last_output.count("--sd-batch-by-path has no effect") == 1


def test_a_pool_of_no_batch_is_refused(zoo):
    error = zoo.refused("generate", *TASK, *SEARCH, "--path", zoo.mixed, "--sd-batch-by-path", "0")
    assert "--sd-batch-by-path 0 is not 1 or more" in error
