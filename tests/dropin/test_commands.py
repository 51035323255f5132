"""fairseq's commands on a switchable model: what users of BART type works, and what cannot work is one line."""

import re

import pytest
import torch
from dropin.commands import (
    AS_SWITCHABLE,
    FRESH_START,
    OWN,
    SEARCH,
    assert_same_hypotheses,
    hydra_train,
    read_hypotheses,
)
from dropin.workers import SWITCHABLE, TASK, load, run

from sd_fairseq.decision.trace import read_trace

BEAM = ["--beam", "2"]
BLEU = ["--eval-bleu", "--eval-bleu-args", '{"beam": 4, "max_len_b": 6}', "--eval-bleu-detok", "space"]


def test_bleu_is_measured_during_training_with_beams_and_its_checkpoint_goes_on(zoo, tmp_path):
    options = [*SWITCHABLE, *BLEU, "--max-update", "2", "--best-checkpoint-metric", "bleu"]
    validation = ["--maximize-best-checkpoint-metric", "--validate-interval-updates", "1"]
    start = ["--restore-file", zoo.mixed, *FRESH_START]
    arguments = [*TASK, *zoo.training, "--save-dir", tmp_path, "--batch-size", "7", *options, *validation]
    output = zoo.command("train", *arguments, *start)
    losses = [float(loss) for loss in re.findall(r'"valid_loss": "([\d.]+)"', output)]
    assert len(re.findall(r'"valid_bleu": "[\d.]+"', output)) == len(losses) >= 2
    output = zoo.command("train", *arguments, "--max-update", "3")
    assert '"valid_num_updates": "3"' in output


def test_validation_takes_every_sentence_and_says_what_training_said(zoo, tmp_path):
    options = [*SWITCHABLE, "--restore-file", zoo.mixed, *FRESH_START, "--lr", "0", "--sd-policy-lr", "1e-9"]
    train = [*TASK, *zoo.training, "--save-dir", tmp_path, *options, "--max-update", "1", "--batch-size", "15"]
    trained = re.findall(r'"valid_loss": "([\d.]+)"', zoo.command("train", *train))
    path = ["--path", tmp_path / "checkpoint_last.pt"]
    output = zoo.command(
        "validate", *TASK, *path, "--cpu", "--num-workers", "0", "--batch-size", "3", "--log-format", "json"
    )
    found = re.search(r'"valid_loss": "([\d.]+)"', output)
    assert abs(float(found.group(1)) - float(trained[-1])) < 2e-3


def test_interactive_gives_what_generate_gives(zoo):
    expected = zoo.generate(zoo.mixed, *BEAM)
    lines = ["--input", zoo.texts / "test.source", "--buffer-size", "12"]
    output = zoo.command("interactive", *TASK, *SEARCH, *BEAM, "--path", zoo.mixed, *lines)
    assert_same_hypotheses(read_hypotheses(output), expected)


def test_constraints_typed_into_interactive_hold_and_are_barts(zoo, tmp_path):
    words = (zoo.data / "dict.target.txt").read_text(encoding="utf-8").split()[100:108:2]
    source = (zoo.texts / "test.source").read_text(encoding="utf-8").splitlines()[:4]
    (tmp_path / "lines").write_text("".join(f"{a}\t{b}\n" for a, b in zip(source, words)), encoding="utf-8")
    options = [*TASK, *SEARCH, "--beam", "4", "--constraints", "--input", tmp_path / "lines", "--buffer-size", "5"]
    outputs = [
        read_hypotheses(zoo.command("interactive", *options, "--path", path, *more))
        for path, more in ((zoo.plain, OWN), (zoo.plain, AS_SWITCHABLE), (zoo.mixed, []))
    ]
    assert_same_hypotheses(outputs[1], outputs[0])
    for found in outputs:
        assert all(word in found[number][0].words.split() for number, word in enumerate(words))


def test_alignments_point_to_original_positions(zoo, tmp_path):
    trace = tmp_path / "trace.jsonl"
    found = zoo.generate(zoo.mixed, *BEAM, "--print-alignment", "soft", "--sd-trace", trace)
    dropped = 0
    for record in read_trace(str(trace)):
        rows = [[float(one) for one in row.split(",")] for row in found[record.id][0].alignment]
        weights = torch.tensor(rows)  # [T, S]
        assert weights.shape == (record.target_tokens, record.source_tokens)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(rows)), atol=1e-4, rtol=0)
        check_positions((weights > 0).any(dim=0).tolist(), record)
        dropped += record.source_tokens - record.kept_source_tokens
    assert dropped > 0


def check_positions(attended, record):
    """Asserts that the positions attended to are those that the token strategy keeps."""
    kind, _, _ = record.token_strategy.partition(":")
    assert sum(attended) == record.kept_source_tokens
    assert attended[0] and attended[-1]
    if kind == "last":
        assert all(attended[: record.kept_source_tokens - 1])
    if kind == "uniform":
        assert all(left or right for left, right in zip(attended, attended[1:]))


def test_with_nothing_skipped_alignments_are_barts(zoo):
    for kind in ("hard", "soft"):
        options = [*BEAM, "--print-alignment", kind]
        expected = zoo.generate(zoo.plain, *options, *OWN)
        found = zoo.generate(zoo.plain, *options, *AS_SWITCHABLE)
        assert_same_hypotheses(found, expected)
        assert all(found[number][0].alignment == expected[number][0].alignment for number in found)


def test_results_path_scoring_and_the_score_command(zoo, tmp_path):
    zoo.generate(zoo.mixed, *BEAM, "--results-path", tmp_path, "--scoring", "sacrebleu")
    lines = (tmp_path / "generate-test.txt").read_text(encoding="utf-8").splitlines()
    assert len(read_hypotheses("\n".join(lines))) == 12
    assert "Generate test with beam=2: BLEU = " in lines[-1]
    for prefix, name in (("D", "system"), ("T", "reference")):
        texts = sorted(line.split("\t") for line in lines if line.startswith(prefix + "-"))
        (tmp_path / name).write_text("".join(text[-1] + "\n" for text in texts), encoding="utf-8")
    log = tmp_path / "log"
    assert "BLEU4 = " in run("score", ["--sys", tmp_path / "system", "--ref", tmp_path / "reference"], log)
    same = run("score", ["--sys", tmp_path / "reference", "--ref", tmp_path / "reference"], tmp_path / "log2")
    assert "BLEU4 = 100.00" in same


def test_shards_together_are_the_whole(zoo):
    whole = zoo.generate(zoo.mixed, *BEAM)
    parts = [
        zoo.generate(zoo.mixed, *BEAM, "--distributed-world-size", "2", "--distributed-rank", rank) for rank in (0, 1)
    ]
    assert not set(parts[0]) & set(parts[1])
    assert_same_hypotheses({**parts[0], **parts[1]}, whole)


def test_a_language_model_joins_the_search_as_with_bart(zoo):
    language_model = zoo.language_model
    options = [*BEAM, "--lm-path", language_model, "--lm-weight", "0.8"]
    expected = zoo.generate(zoo.plain, *options, *OWN)
    assert_same_hypotheses(zoo.generate(zoo.plain, *options, *AS_SWITCHABLE), expected)
    alone = zoo.generate(zoo.plain, *BEAM)
    assert any(alone[number][0].words != expected[number][0].words for number in alone)
    together = zoo.generate(zoo.mixed, *options, "--batch-size", "12")
    assert_same_hypotheses(together, zoo.generate(zoo.mixed, *options, "--batch-size", "1"))


def test_unknown_words_are_replaced_by_words_of_the_source(zoo):
    options = [*BEAM, "--unkpen", "-4", "--dataset-impl", "raw", "--path", zoo.mixed]
    unknown = read_hypotheses(zoo.command("generate", *TASK, *SEARCH, *options, data=zoo.raw_data))
    assert any("<unk>" in found[0].words for found in unknown.values())
    output = zoo.command("generate", *TASK, *SEARCH, *options, "--replace-unk", "", data=zoo.raw_data)
    replaced = read_hypotheses(output)
    sources = (zoo.texts / "test.source").read_text(encoding="utf-8").splitlines()
    for number, found in replaced.items():
        before, after = unknown[number][0].words.split(), found[0].words.split()
        assert len(before) == len(after)
        for old, new in zip(before, after):
            assert new == old if old != "<unk>" else new in sources[number].split() + ["<eos>"]


def test_hydra_trains_a_switchable_model_that_generates_and_goes_on(zoo):
    path = hydra_train(
        zoo,
        "hydra-switchable",
        "switchable_bart_base",
        "switchable_translation",
        criterion={"_name": "sd_policy_criterion", "sd_preset": "paper"},
    )
    state = load(path)["model"]
    assert float(state["policy_learner.steps"]) == 1
    assert len(zoo.generate(path, *BEAM)) == 12
    assert "decided by: network" in zoo.last_output


@pytest.mark.parametrize(
    "command, options, needles",
    [
        ("generate", ["--constraints"], ["--constraints", "fairseq-interactive"]),
        ("generate", ["--print-step"], ["--print-step"]),
        ("generate", ["--replace-unk", "words", "--print-alignment"], ["--replace-unk", "--print-alignment"]),
        ("generate", ["--replace-unk"], ["--replace-unk", "file"]),
        ("train", ["--num-batch-buckets", "4"], ["--num-batch-buckets 4", "numpy"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_what_fairseq_cannot_do_is_one_line(zoo, command, options, needles):
    model = [*SWITCHABLE, *zoo.training] if command == "train" else ["--path", zoo.mixed, *SEARCH]
    error = zoo.refused(command, *TASK, *model, *options)
    assert all(needle in error for needle in needles)
