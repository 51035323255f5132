"""The figures that training and validation log, each derived a second way."""

import pytest
import torch
import torch.nn.functional as F
from factories import random_decisions
from fairseq.logging import metrics
from training import build_samples, build_training

from sd_fairseq.cost.path_flops import Lengths, dense_flops, relative_flops
from sd_fairseq.decision.decisions import SITES
from sd_fairseq.decision.token_strategies import kept_token_mask
from sd_fairseq.plugin.criterions.policy_metrics import describe_path, reduce_policy_metrics
from sd_fairseq.plugin.models.switchable_encoder import PathRequest


def deployed(training, sample, path=PathRequest()):
    """Decisions, mean token NLL of every example and lengths, without the criterion."""
    with torch.no_grad():
        logits, extra = training.model.eval()(**sample["net_input"], path=path)
    target = sample["target"]
    nll = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=1, reduction="none")  # 0 where padding
    sizes = target.ne(1).sum(dim=1)
    return extra["decisions"], nll.sum(dim=1) / sizes, Lengths(sample["net_input"]["src_lengths"], sizes, 4)


def reduced(outputs):
    """What fairseq's loggers would show."""
    with metrics.aggregate(new_root=True) as shown:
        reduce_policy_metrics(outputs)
    return {key: shown.get_smoothed_value(key) for key in shown}


def test_training_logs_skip_rates_flops_and_qualities_of_the_deployed_path():
    training, (sample,) = build_training(), build_samples()
    decisions, nll, lengths = deployed(training, sample)
    logged = training.step(sample)[2]
    space, shape = training.model.space, training.model.shape
    assert logged["sd_examples"] == 8
    assert logged["sd_distinct_paths"] == decisions.count_distinct_paths() > 3
    assert float(logged["sd_quality_mode"]) == pytest.approx(float(nll.sum()), rel=1e-5)
    for definition in ("generation", "paper"):
        expected = float(relative_flops(definition, shape, space, decisions, lengths).sum())
        assert float(logged[f"sd_flops_{definition}"]) == pytest.approx(expected, rel=1e-6)
    for site in ("encoder_attention", "encoder_ffn", "decoder_attention", "decoder_ffn"):
        switchable = [layer for name, layer in space.switches if name == site]
        skipped = sum(not bool(getattr(decisions, site)[row, layer]) for row in range(8) for layer in switchable)
        assert float(logged[f"sd_skip_{site}"]) == pytest.approx(skipped / len(switchable), rel=1e-6)
    padding = sample["net_input"]["src_tokens"].eq(1)
    kept = kept_token_mask(padding, decisions.token_choice, space.token_strategies).sum(dim=1)
    assert float(logged["sd_skip_token"]) == pytest.approx(float((1 - kept / lengths.source).sum()), rel=1e-6)


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_gflops_are_those_of_the_deployed_and_of_the_dense_path(keep):
    training, (sample,) = build_training(), build_samples()
    space, shape = training.model.space, training.model.shape
    decisions = random_decisions(space, 8, keep)
    decisions.token_choice.zero_()
    lengths = Lengths(sample["net_input"]["src_lengths"], sample["target"].ne(1).sum(dim=1), 4)
    figures = describe_path(space, shape, decisions, lengths, None)
    dense = dense_flops("generation", shape, space, lengths)
    shares = relative_flops("generation", shape, space, decisions, lengths)
    assert float(figures["sd_gflops_dense"]) == pytest.approx(float(dense.sum()) / 1e9, rel=1e-5)
    assert float(figures["sd_gflops"]) == pytest.approx(float((shares * dense).sum()) / 1e9, rel=1e-5)


def test_shares_of_token_strategies_are_counts_and_add_up():
    training, (sample,) = build_training(), build_samples()
    decisions, _, _ = deployed(training, sample)
    logged = training.step(sample)[2]
    found = [int(logged["sd_tokens_" + str(one).replace(":", "_")]) for one in training.model.space.token_strategies]
    assert found == torch.bincount(decisions.token_choice, minlength=7).tolist()
    assert sum(found) == 8


@pytest.mark.parametrize("apart", [False, True])
def test_cross_attention_is_reported_where_it_is_a_switch_of_its_own(apart):
    training = build_training({"sd_cross_attention_apart": apart})
    logged = training.step(build_samples()[0])[2]
    assert ("sd_skip_decoder_cross_attention" in logged) == apart


def test_sites_outside_the_space_are_not_reported():
    training = build_training({"sd_space": "encoder"})
    logged = training.step(build_samples()[0])[2]
    assert not [key for key in logged if key.startswith("sd_skip_decoder")]
    assert float(logged["sd_skip_token"]) == 0.0


def test_the_dense_path_skips_nothing_and_costs_what_the_policy_adds():
    training, (sample,) = build_training(), build_samples()
    space = training.model.space
    _, nll, lengths = deployed(training, sample)
    figures = describe_path(space, training.model.shape, space.keep_all(8, torch.device("cpu")), lengths, nll)
    assert all(float(figures[key]) == 0 for key in figures if key.startswith("sd_skip_"))
    assert float(figures["sd_flops_paper"]) == 8.0
    assert 8.0 < float(figures["sd_flops_generation"]) < 8.8


def test_the_corpuss_flops_are_a_ratio_of_sums_over_batches_and_workers():
    outputs = [
        {"sd_examples": 1, "sd_gflops": 0.5, "sd_gflops_dense": 1.0},
        {"sd_examples": 7, "sd_gflops": 7.0, "sd_gflops_dense": 9.0},
    ]
    assert reduced(outputs) == {"sd_flops_corpus": pytest.approx(0.75)}


def test_figures_of_any_split_reduce_to_the_same_means():
    whole = build_training()
    expected = reduced([whole.step(sample)[2] for sample in build_samples((8,))])
    for split in ((1, 7), (4, 4), (2, 2, 2, 2)):
        training = build_training()
        found = reduced([training.step(sample)[2] for sample in build_samples(split)])
        assert found.keys() == expected.keys()
        for key in found:
            if key != "sd_distinct_paths":  # counted within a batch
                assert found[key] == pytest.approx(expected[key], abs=2e-4), key


def test_every_logged_figure_can_be_summed():
    training = build_training()
    for output in training.update(build_samples((4, 4))):
        for key, value in output.items():
            assert float(value) == float(value) and torch.as_tensor(value).numel() == 1, key
    assert training.criterion.logging_outputs_can_be_summed()


def test_figures_absent_everywhere_are_left_out_and_present_ones_stay_means():
    assert reduced([{"loss": 1.0}]) == {}
    shown = reduced([{"sd_examples": 3, "sd_batches": 1, "sd_flops_paper": 1.5}, {"sd_examples": 1, "sd_batches": 1}])
    assert shown == {"sd_flops_paper": pytest.approx(1.5 / 4, abs=1e-4)}


def test_validation_scores_the_deployed_path_and_leaves_no_gradient_behind():
    training, (sample,) = build_training(), build_samples()
    decisions, nll, _ = deployed(training, sample)
    before = training.policy()
    loss, size, logged = training.task.valid_step(sample, training.model, training.criterion)
    tokens = sample["target"].ne(1).sum(dim=1)
    assert size == int(tokens.sum())
    assert float(loss) == pytest.approx(float((nll * tokens).sum()), rel=1e-5)
    assert logged["sd_distinct_paths"] == decisions.count_distinct_paths()
    _, dense, _ = deployed(training, sample, PathRequest("dense"))
    assert float(logged["sd_quality_dense"]) == pytest.approx(float(dense.sum()), rel=1e-5)
    assert logged["sd_dense"] == logged["sd_sampled"] == 8
    assert training.criterion.pending == []
    assert torch.equal(training.policy(), before)


def test_validation_is_repeatable_and_leaves_training_as_it_was():
    training, (sample,) = build_training({"dropout": 0.3}), build_samples()
    first = training.task.valid_step(sample, training.model, training.criterion)[2]
    torch.manual_seed(1)
    again = training.task.valid_step(sample, training.model, training.criterion)[2]
    assert {key: float(value) for key, value in first.items()} == {key: float(value) for key, value in again.items()}


def test_the_constraint_is_measured_with_dropout_off_and_turns_it_on_again():
    results = []
    for dropout in (0.0, 0.4):
        training = build_training({"dropout": dropout}, sd_constraint_interval=1)
        logged = training.update(build_samples())[0]
        assert training.model.training and training.model.encoder.layers[0].training
        results.append((float(logged["sd_quality_dense_dropout_off"]), float(training.model.policy_learner.violation)))
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_the_constraint_is_measured_at_its_interval_only():
    training = build_training(sd_constraint_interval=3)
    measured = ["sd_dense" in training.update(build_samples(), update)[0] for update in range(7)]
    assert measured == [True, False, False, True, False, False, True]
    assert float(training.model.policy_learner.violation_updates) == 3


def test_the_violation_is_the_gap_to_the_dense_path_beyond_the_tolerance():
    training, (sample,) = build_training(sd_constraint_temperature=0.0, sd_tolerance=0.02), build_samples()
    _, mode, _ = deployed(training, sample)
    _, dense, _ = deployed(training, sample, PathRequest("dense"))
    training.update([sample])
    expected = float((mode - dense).mean()) - 0.02
    assert float(training.model.policy_learner.violation) == pytest.approx(expected, abs=1e-5)


def test_random_paths_reduce_to_their_mean_skip_rates():
    training, (sample,) = build_training({"sd_cross_attention_apart": True}), build_samples()
    space = training.model.space
    _, nll, lengths = deployed(training, sample)
    decisions = random_decisions(space, 8)
    shown = reduced([describe_path(space, training.model.shape, decisions, lengths, nll)])
    for site in SITES:
        layers = [layer for name, layer in space.switches if name == site]
        expected = 1 - float(getattr(decisions, site)[:, layers].float().mean())
        assert shown[f"sd_skip_{site}"] == pytest.approx(expected, abs=1e-4)
