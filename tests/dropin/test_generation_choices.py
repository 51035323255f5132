"""A plain BART generates fast by itself, --sd-path says who decides, and a summary ends every generation."""

import os
import re
import shutil

import pytest
from dropin.commands import FRESH_START, OWN, PLAIN, SEARCH, assert_same_hypotheses, read_hypotheses
from dropin.workers import SWITCHABLE, TASK
from traces import make_record

from sd_fairseq.decision.trace import read_trace
from sd_fairseq.plugin.tasks.trace_file import TraceFile

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


def test_the_budget_is_chosen_when_generating(zoo, tmp_path):
    shares = []
    for options in (["--sd-flops-budget", "0.3"], ["--sd-flops-budget", "0.9"], []):
        trace = tmp_path / f"{len(shares)}.jsonl"
        zoo.generate(zoo.any_budget, *BEAM, "--sd-trace", trace, *options)
        shares.append(share(zoo.last_output))
        records = read_trace(str(trace))
        corpus = sum(one.flops_generation for one in records) / sum(one.flops_generation_dense for one in records)
        assert corpus == pytest.approx(shares[-1], abs=6e-5)
        assert ("(budget " in zoo.last_output) == bool(options)
    assert shares[0] < 0.8 < shares[1] == shares[2]
    text = (zoo.texts / "test.source").read_text(encoding="utf-8")
    lines = ["--input", zoo.texts / "test.source", "--buffer-size", str(len(text.splitlines()))]
    more = ["--path", zoo.any_budget, "--sd-flops-budget", "0.3"]
    output = zoo.command("interactive", *TASK, *SEARCH, *BEAM, *lines, *more)
    assert share(output) == pytest.approx(shares[0], abs=2e-4)


def test_validation_serves_the_checkpoints_own_budget_whatever_its_training_was_told(zoo):
    """A training's --sd-flops-budget stands among the options of its task, too."""
    more = ["--sd-mode", "budget", "--sd-flops-budget", "0.6", "--eval-bleu", "--eval-bleu-detok", "space"]
    path = zoo.train("one-budget", *SWITCHABLE, *more, "--restore-file", zoo.plain, *FRESH_START)
    validate = ["--path", path, "--num-workers", "0", "--batch-size", "3", "--log-format", "json", "--cpu"]
    assert "bleu" in zoo.command("validate", *TASK, *validate)


def test_a_budget_without_effect_is_refused(zoo):
    for command, options, reason in (
        ("generate", ["--path", zoo.any_budget, "--sd-flops-budget", "0.2"], "not in the range 0.3 to 0.9"),
        ("generate", ["--path", zoo.mixed, "--sd-flops-budget", "0.5"], "trained with --sd-budget-range"),
        ("generate", ["--path", zoo.plain, "--sd-flops-budget", "0.5"], "a switchable model"),
        ("generate", ["--path", zoo.mixed, "--sd-flops-budget", "0.5", "--sd-path", "dense"], "found --sd-path dense"),
        ("validate", ["--path", zoo.any_budget, "--sd-flops-budget", "0.5"], "--model-overrides"),
    ):
        assert reason in zoo.refused(command, *TASK, *options, *(SEARCH if command == "generate" else []))


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


def interactive(zoo, lines, tmp_path, *options):
    (tmp_path / "lines").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    options = [*TASK, *SEARCH, *BEAM, "--input", tmp_path / "lines", "--buffer-size", "5", *options]
    return zoo.command("interactive", *options, "--path", zoo.mixed)


def test_an_empty_line_goes_unanswered_in_interactive_and_is_refused_in_data(zoo, tmp_path):
    lines = (zoo.texts / "test.source").read_text(encoding="utf-8").splitlines()
    expected = read_hypotheses(interactive(zoo, lines, tmp_path))
    output = interactive(zoo, [*lines[:6], " ", *lines[7:]], tmp_path)
    del expected[6]
    assert_same_hypotheses(read_hypotheses(output), expected)
    assert "line 7 of the input is empty" in output
    data = tmp_path / "data"
    data.mkdir()
    for side in ("source", "target"):
        text = [*lines[:6], "", *lines[7:]] if side == "source" else lines
        (data / f"test.source-target.{side}").write_text("\n".join(text) + "\n", encoding="utf-8")
        shutil.copy(str(zoo.data / f"dict.{side}.txt"), str(data))
    for more in ([], ["--truncate-source"]):
        with pytest.raises(AssertionError, match="source line 7 of 'test' is empty"):
            zoo.command("generate", *TASK, *SEARCH, "--path", zoo.mixed, "--dataset-impl", "raw", *more, data=data)


def test_interactive_traces_every_line_under_its_number(zoo, tmp_path):
    lines = (zoo.texts / "test.source").read_text(encoding="utf-8").splitlines()
    interactive(zoo, [*lines[:6], "", *lines[7:]], tmp_path, "--sd-trace", tmp_path / "lines.jsonl")
    zoo.generate(zoo.mixed, *BEAM, "--sd-trace", tmp_path / "data.jsonl")
    expected, found = (
        {one.id: (one.path, one.source_tokens) for one in read_trace(str(tmp_path / name))}
        for name in ("data.jsonl", "lines.jsonl")
    )
    del expected[6]
    assert found == expected
    assert not list(tmp_path.glob("*.part"))


def test_a_trace_follows_links_and_leaves_devices(zoo, tmp_path):
    (tmp_path / "target").write_text("old", encoding="utf-8")
    (tmp_path / "link").symlink_to("target")
    zoo.generate(zoo.mixed, *BEAM, "--sd-trace", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and len(read_trace(str(tmp_path / "target"))) == 12
    os.mkfifo(str(tmp_path / "pipe"))
    reader = os.open(str(tmp_path / "pipe"), os.O_RDONLY | os.O_NONBLOCK)
    zoo.generate(zoo.mixed, *BEAM, "--sd-trace", tmp_path / "pipe")
    assert os.read(reader, 2**16).count(b"\n") == 12
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_place_that_cannot_be_written_is_noticed_before_the_work(zoo, tmp_path):
    place = tmp_path / "no" / "trace"
    error = zoo.refused("generate", *TASK, *SEARCH, "--path", zoo.mixed, "--sd-trace", place)
    assert f"--sd-trace {place}: cannot be written" in error


def test_a_trace_that_can_no_longer_be_written_does_not_take_the_results(tmp_path, caplog):
    file = TraceFile(str(tmp_path / "trace"))
    file.file.stream.close()
    file.file.stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    for _ in range(2):
        file.append([make_record(0)], False)
    assert caplog.text.count("the trace ends here") == 1


def test_a_killed_run_leaves_what_it_has_recorded(tmp_path):
    file = TraceFile(str(tmp_path / "trace"))
    file.append([make_record(0)], False)
    (part,) = tmp_path.glob("*.part")
    assert [one.id for one in read_trace(str(part))] == [0]
    file.append([make_record(1)], True)
    file.append([make_record(2)], False)
    assert [one.id for one in read_trace(str(tmp_path / "trace"))] == [0, 1, 2]


def test_a_reference_has_no_trace(zoo, tmp_path):
    options = ["--score-reference", "--sd-trace", tmp_path / "trace"]
    assert "--score-reference" in zoo.refused("generate", *TASK, *SEARCH, "--path", zoo.mixed, *options)


@pytest.mark.parametrize("rule", ["skipdecode:min=1,over=4,bottom=0", "skipdecode:max=1,min=1,bottom=0"])
def test_a_rule_by_position_runs_in_both_generators_alike(zoo, tmp_path, rule):
    """On a checkpoint with a policy and on a plain BART; trace and summary count the same layers."""
    options = [*BEAM, "--sd-path", rule, "--min-len", "5"]
    expected = zoo.generate(zoo.mixed, *options, *OWN, "--sd-trace", tmp_path / "own.jsonl")
    lines = summary(zoo.last_output)
    assert_same_hypotheses(zoo.generate(zoo.mixed, *options, "--sd-trace", tmp_path / "fast.jsonl"), expected)
    assert "by the fast generator" in zoo.last_output and summary(zoo.last_output)[1:] == lines[1:]
    own, fast = (read_trace(str(tmp_path / f"{name}.jsonl")) for name in ("own", "fast"))
    assert [(one.flops_generation, one.layer_tokens) for one in own] == [
        (one.flops_generation, one.layer_tokens) for one in fast
    ]
    tokens = sum(one.decoder_steps * one.beam for one in own)
    mean = sum(int(count) for one in own for count in one.layer_tokens.split(",")) / tokens
    assert f"sd_fairseq: {mean:.2f} of 2 decoder layers a token, by {own[0].rule}" in zoo.last_output
    corpus = sum(one.flops_generation for one in own) / sum(one.flops_generation_dense for one in own)
    assert share(zoo.last_output) == pytest.approx(corpus, abs=6e-5) and corpus < 1
    zoo.generate(zoo.plain, *options)
    assert f"decoder layers a token, by {own[0].rule}" in zoo.last_output


@pytest.mark.parametrize("rule", ["calm:threshold=0.02", "free:threshold=0.02"])
def test_a_rule_by_confidence_runs_in_both_generators_alike_and_counts_what_left(zoo, tmp_path, rule):
    beam = ["--beam", "1"]
    expected = zoo.generate(zoo.mixed, *beam, "--sd-path", rule, "--sd-trace", tmp_path / "trace.jsonl")
    lines = summary(zoo.last_output)
    assert "by the fast generator" in lines[0]
    assert_same_hypotheses(zoo.generate(zoo.mixed, *beam, *OWN, "--sd-path", rule), expected)
    assert summary(zoo.last_output)[1:] == lines[1:]
    records = read_trace(str(tmp_path / "trace.jsonl"))
    for record in records:
        counts = [int(count) for count in record.layer_tokens.split(",")]
        assert counts[0] == record.decoder_steps >= counts[1] and "threshold=0.02" in record.rule
    assert any(record.layer_shares[-1] < 1 for record in records)
    pooled = zoo.generate(zoo.mixed, *beam, "--sd-path", rule, "--sd-batch-by-path", "2", "--sd-trace", tmp_path / "2")
    assert_same_hypotheses(pooled, expected)
    assert [one.layer_tokens for one in read_trace(str(tmp_path / "2"))] == [one.layer_tokens for one in records]


@pytest.mark.parametrize(
    "options, reason",
    [
        (
            ["--sd-path", "hsd:min=7"],
            "--sd-path hsd:min=7,over=32,bottom=1,top=1: min is 7, expected 2..2 in this model",
        ),
        (["--sd-path", "hsd:min=x"], "--sd-path hsd:min=x: min is 'x', expected a whole number from 1 on"),
        (["--sd-path", "free", "--beam", "4"], "keeps one hypothesis a sentence, found --beam 4: give --beam 1"),
        (["--sd-path", "calm", "--print-alignment"], "keeps no attention, found --print-alignment or --replace-unk"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(zoo, options, reason):
    assert reason in zoo.refused("generate", *TASK, *SEARCH, "--path", zoo.mixed, *options)
