"""The main job through fairseq's own commands: train, generate with a trace, score, resume."""

import json
import re
import subprocess

import torch
from warm import python

from sd_fairseq.decision.trace import read_trace


def json_lines(log):
    found = (re.search(r"\| (train_inner|valid|train) \| (\{.*\})", line) for line in log.splitlines())
    return [(match.group(1), json.loads(match.group(2))) for match in found if match]


def test_a_plain_bart_checkpoint_starts_a_switchable_one_open(pipeline):
    first = next(figures for kind, figures in json_lines(pipeline.log) if kind == "train_inner")
    assert float(first["sd_skip_encoder_ffn"]) == 0.0
    assert float(first["sd_distinct_paths"]) == 1.0


def test_training_and_validation_log_quality_cost_and_decisions(pipeline):
    kinds = dict(json_lines(pipeline.log))
    for kind, prefix in (("train_inner", ""), ("valid", "valid_")):
        for name in (
            "quality_sample",
            "quality_mode",
            "flops_generation",
            "flops_paper",
            "skip_encoder_attention",
            "skip_encoder_ffn",
            "skip_decoder_attention",
            "skip_decoder_ffn",
            "skip_token",
            "tokens_keep",
            "tokens_last_30",
            "distinct_paths",
        ):
            assert f"{prefix}sd_{name}" in kinds[kind], (kind, name)
    assert "valid_sd_quality_dense" in kinds["valid"]
    assert "sd_multiplier" in kinds["train_inner"]


def test_a_high_weight_on_flops_makes_the_policy_skip(pipeline):
    last = [figures for kind, figures in json_lines(pipeline.log) if kind == "valid"][-1]
    assert float(last["valid_sd_flops_generation"]) < 0.97


def test_every_sentence_of_the_test_set_is_generated_and_traced(pipeline, tmp_path):
    output = pipeline.generate(pipeline.switchable, "--sd-trace", tmp_path / "trace.jsonl", "--no-repeat-ngram-size", 2)
    ids = {int(number) for number in re.findall(r"^H-(\d+)\t", output.stdout, re.MULTILINE)}
    records = read_trace(str(tmp_path / "trace.jsonl"))
    assert ids == {record.id for record in records} == set(range(17))
    assert all(0 < record.flops_generation <= 1.2 * record.flops_generation_dense for record in records)
    hypotheses = re.findall(r"^D-\d+\t\S+\t(.*)$", output.stdout, re.MULTILINE)
    for words in map(str.split, hypotheses):
        bigrams = list(zip(words, words[1:]))
        assert len(bigrams) == len(set(bigrams))


def test_decisions_in_the_trace_do_not_depend_on_the_batch(pipeline, tmp_path):
    paths = []
    for tokens in ("200", "1500"):
        trace = tmp_path / f"{tokens}.jsonl"
        pipeline.generate(pipeline.switchable, "--max-tokens", tokens, "--sd-trace", trace)
        paths.append([record.path for record in read_trace(str(trace))])
    assert paths[0] == paths[1]


def test_shards_cover_the_test_set_once(pipeline, tmp_path):
    seen = []
    for shard in (0, 1):
        trace = tmp_path / f"{shard}.jsonl"
        options = ["--distributed-world-size", 2, "--distributed-rank", shard, "--max-tokens", 200, "--sd-trace", trace]
        output = pipeline.generate(pipeline.switchable, *options).stdout
        ids = sorted(int(number) for number in re.findall(r"^H-(\d+)\t", output, re.MULTILINE))
        assert ids == [record.id for record in read_trace(str(trace))]
        seen += ids
    assert sorted(seen) == list(range(17))


def test_a_dense_trace_of_plain_bart_costs_one(pipeline, tmp_path):
    pipeline.generate(pipeline.base, "--sd-trace", tmp_path / "trace.jsonl")
    records = read_trace(str(tmp_path / "trace.jsonl"))
    assert {record.relative_flops_generation for record in records} == {1.0}
    assert {record.relative_flops_paper for record in records} == {1.0}


def test_random_decisions_match_the_flops_they_are_asked_for(pipeline, tmp_path):
    learned, drawn = tmp_path / "learned.jsonl", tmp_path / "random.jsonl"
    pipeline.generate(pipeline.switchable, "--sd-trace", learned)
    command = [python(), "-m", "sd_fairseq.commands.match_random", str(pipeline.data)]
    command += ["--path", str(pipeline.switchable), "--trace", str(learned)]
    keep = subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout.strip()
    overrides = f"{{'sd_policy': 'random', 'sd_random_keep': {keep}}}"
    pipeline.generate(pipeline.switchable, "--sd-trace", drawn, "--model-overrides", overrides)
    means = []
    for trace in (learned, drawn):
        records = read_trace(str(trace))
        means.append(sum(record.relative_flops_generation for record in records) / len(records))
    assert abs(means[0] - means[1]) < 0.12  # 17 sentences: the draw itself varies


def test_rouge_scores_while_generating(pipeline):
    output = pipeline.generate(pipeline.switchable, "--scoring", "sd_rouge")
    assert re.search(r"Generate test with beam=2: .*sd_rouge", output.stdout)


def test_resume_equals_never_stopped(pipeline):
    options = ["--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--sd-policy-lr", "0.01"]
    pipeline.train("whole", *options, "--max-update", "6")
    pipeline.train("parts", *options, "--max-update", "3")
    pipeline.train("parts", *options, "--max-update", "6")
    whole, parts = (
        torch.load(str(pipeline.folder / name / "checkpoint_last.pt"), weights_only=False)["model"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    different = [key for key in whole if not torch.equal(whole[key], parts[key])]
    assert not different
    assert float(whole["policy_learner.steps"]) == 6


def test_the_layerwise_policy_and_every_mode_train(pipeline):
    for mode in ("constrained", "lexicographic", "barrier", "budget", "as-printed"):
        policy = "layerwise" if mode == "budget" else "network"
        options = ["--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--sd-mode", mode]
        pipeline.train(f"mode-{mode}", *options, "--sd-policy", policy, "--max-update", "2", "--disable-validation")
        assert (pipeline.folder / f"mode-{mode}" / "checkpoint_last.pt").exists()
