"""Every search option of fairseq gives with switchable_bart what it gives with bart, and no batch mate shows in it."""

import pytest
from dropin.commands import AS_SWITCHABLE, DENSE, OWN, assert_same_hypotheses

OPTIONS = {
    "beam 4": ["--beam", "4", "--nbest", "4"],
    "greedy": ["--beam", "1"],
    "lengths": ["--beam", "3", "--min-len", "4", "--max-len-b", "5", "--lenpen", "2"],
    "unnormalized": ["--beam", "2", "--unnormalized", "--unkpen", "1", "--temperature", "1.3"],
    "prefix": ["--beam", "2", "--prefix-size", "2"],
    "match source length": ["--beam", "2", "--match-source-len"],
    "diverse siblings": ["--beam", "4", "--nbest", "4", "--diversity-rate", "0.7"],
    "reference": ["--score-reference"],
    "top k": ["--sampling", "--sampling-topk", "5", "--beam", "3", "--nbest", "3", "--seed", "7"],
    "top p": ["--sampling", "--sampling-topp", "0.6", "--beam", "2", "--nbest", "2", "--seed", "7"],
    "dropout at inference": ["--beam", "2", "--retain-dropout", "--seed", "5"],
    "n-grams": ["--beam", "2", "--no-repeat-ngram-size", "2"],
}
# Initialising a policy draws random numbers too, so these are compared without one.
DRAWN = {"top k", "top p", "dropout at inference"}


@pytest.mark.parametrize("name", OPTIONS)
def test_with_nothing_skipped_an_option_gives_what_it_gives_with_bart(zoo, name):
    expected = zoo.generate(zoo.plain, *OPTIONS[name], *OWN)
    assert "decided by" not in zoo.last_output
    assert_same_hypotheses(zoo.generate(zoo.plain, *OPTIONS[name]), expected)
    assert "decided by: dense" in zoo.last_output
    found = zoo.generate(zoo.plain, *OPTIONS[name], *(DENSE if name in DRAWN else AS_SWITCHABLE))
    assert "decided by: " + ("dense" if name in DRAWN else "network") in zoo.last_output
    assert_same_hypotheses(found, expected)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in DRAWN] + ["diverse groups"])
def test_with_mixed_decisions_no_batch_mate_shows(zoo, name):
    options = OPTIONS.get(name, ["--beam", "4", "--nbest", "4", "--diverse-beam-groups", "2"])
    together = zoo.generate(zoo.mixed, *options, "--batch-size", "12")
    alone = zoo.generate(zoo.mixed, *options, "--batch-size", "1")
    assert_same_hypotheses(together, alone)
    assert len({hypotheses[0].words for hypotheses in together.values()}) > 4
