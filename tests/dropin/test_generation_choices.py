"""A plain BART generates fast by itself, --sd-path says who decides, and a summary ends every generation."""

import re

import pytest
from dropin.commands import OWN, PLAIN, SEARCH, assert_same_hypotheses, read_hypotheses
from dropin.workers import TASK

BEAM = ["--beam", "2"]
PATH = "encoder_ffn=101,decoder_ffn=01"


def summary(output):
    return [line for line in output.splitlines() if line.startswith("sd_fairseq: ") and "error" not in line]


def share(output):
    return float(re.search(r"sd_fairseq: ([0-9.]+).* of the dense model's FLOPs", output).group(1))


def test_interactive_runs_a_plain_checkpoint_fast_with_the_same_hypotheses(zoo):
    outputs = []
    for more in (OWN, []):
        lines = ["--input", zoo.texts / "test.source", "--buffer-size", "12"]
        outputs.append(zoo.command("interactive", *TASK, *SEARCH, *BEAM, "--path", zoo.plain, *lines, *more))
    assert_same_hypotheses(read_hypotheses(outputs[1]), read_hypotheses(outputs[0]))
    assert "by fairseq's generator" in summary(outputs[0])[0]
    assert "12 documents" in summary(outputs[1])[0] and "by the fast generator" in summary(outputs[1])[0]


def test_where_the_fast_generator_cannot_run_one_warning_says_why(zoo):
    for path, options, reason in (
        (f"{zoo.plain}:{zoo.plain}", [], "ensemble of 2"),
        (zoo.plain, ["--retain-dropout"], "--retain-dropout"),
    ):
        zoo.generate(path, *BEAM, *options)
        found = [line for line in zoo.last_output.splitlines() if "slower generator runs" in line]
        assert len(found) == 1 and reason in found[0] and "WARNING" in found[0]


def test_training_a_plain_bart_under_the_task_stays_fairseqs_own_model(zoo, tmp_path):
    zoo.train(tmp_path, *PLAIN)
    assert "decided by" not in zoo.last_output and "BARTModel" in zoo.last_output


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        ("dense", "{'sd_policy': 'dense'}"),
        ("random:0.5:3", "{'sd_policy': 'random', 'sd_random_keep': 0.5, 'sd_random_seed': 3}"),
        (PATH, "{'sd_policy': 'static', 'sd_static_path': '%s'}" % PATH),
        ("static:" + PATH, "{'sd_policy': 'static', 'sd_static_path': '%s'}" % PATH),
    ],
)
def test_a_path_is_what_its_overrides_are(zoo, path, overrides):
    expected = zoo.generate(zoo.mixed, *BEAM, "--model-overrides", overrides)
    expected_share = share(zoo.last_output)
    assert_same_hypotheses(zoo.generate(zoo.mixed, *BEAM, "--sd-path", path), expected)
    assert share(zoo.last_output) == expected_share
    assert (expected_share == 1.0) == (path == "dense")


@pytest.mark.parametrize("path", ["sparse", "random", "random:2", "random:x", "dense:1", "static", "static:"])
def test_a_wrong_path_is_refused_with_the_valid_ones(zoo, path):
    error = zoo.refused("generate", *TASK, *SEARCH, "--path", zoo.mixed, "--sd-path", path)
    assert repr(path) in error and "dense, random:KEEP[:SEED], static:PATH" in error


def test_a_path_also_switches_a_plain_checkpoint(zoo):
    dense = zoo.generate(zoo.plain, *BEAM)
    assert share(zoo.last_output) == 1.0
    skipped = zoo.generate(zoo.plain, *BEAM, "--sd-path", PATH)
    assert share(zoo.last_output) < 0.95
    assert any(dense[number][0].words != skipped[number][0].words for number in dense)


def test_the_summary_is_the_traces_and_tells_the_shard(zoo, tmp_path):
    from sd_fairseq.decision.trace import read_trace

    trace = tmp_path / "trace.jsonl"
    zoo.generate(zoo.mixed, *BEAM, "--sd-trace", trace)
    with_trace = summary(zoo.last_output)
    records = read_trace(str(trace))
    corpus = sum(one.flops_generation for one in records) / sum(one.flops_generation_dense for one in records)
    assert share(zoo.last_output) == pytest.approx(corpus, abs=6e-5)
    assert f"{len({one.path for one in records})} distinct paths" in with_trace[1]
    skipped = sum(one.encoder_ffn.count("0") for one in records) / sum(
        len(one.encoder_ffn.replace("=", "")) for one in records
    )
    assert f"encoder_ffn {skipped:.1%}" in with_trace[2]
    zoo.generate(zoo.mixed, *BEAM)
    assert summary(zoo.last_output)[1:] == with_trace[1:]
    zoo.generate(zoo.mixed, *BEAM, "--distributed-world-size", "2", "--distributed-rank", "1")
    assert "of shard 1 of 2" in summary(zoo.last_output)[0]


def test_a_switchable_model_that_skips_nothing_is_warned_about_unless_that_was_asked_for(zoo):
    kept = "encoder_ffn=111"
    zoo.generate(zoo.mixed, *BEAM, "--sd-path", kept)
    assert "WARNING: a switchable model skipped nothing" in zoo.last_output
    zoo.generate(zoo.mixed, *BEAM, "--sd-path", "dense")
    assert "skipped nothing" not in zoo.last_output


def test_positions_come_from_the_checkpoint_and_smaller_ones_are_obeyed(zoo):
    zoo.generate(zoo.mixed, *BEAM, "--max-source-positions", "4", "--truncate-source")
    source = [line for line in zoo.last_output.splitlines() if line.startswith("S-")]
    assert max(len(line.split("\t")[1].split()) for line in source) <= 3
    error = zoo.refused("generate", *TASK, *SEARCH, "--path", zoo.mixed, "--max-source-positions", "500")
    assert "--max-source-positions 500" in error and "128" in error


def test_a_too_long_target_is_not_answered_with_an_option_for_sources(zoo):
    error = zoo.refused("generate", *TASK, *SEARCH, "--path", zoo.mixed, "--max-target-positions", "2")
    assert "target of sentence" in error and "--truncate-source" not in error
    assert "--skip-invalid-size-inputs-valid-test" in error


def test_a_reference_has_no_trace(zoo, tmp_path):
    options = ["--score-reference", "--sd-trace", tmp_path / "trace"]
    assert "--score-reference" in zoo.refused("generate", *TASK, *SEARCH, "--path", zoo.mixed, *options)
