"""``switchable_sentence_prediction`` under ``sd_policy_criterion``: what is learned from, logged and refused."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.logging import metrics
from sentences import HEAD, build_classifier, build_sentence_training, build_sentences, pick_sentences
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from sd_fairseq.cost.path_flops import HeadShape, expected_relative_flops
from sd_fairseq.learning.reinforce import flat_gradient
from sd_fairseq.plugin.criterions.head_metrics import reduce_head_metrics
from sd_fairseq.plugin.criterions.policy_step import policy_step, trainable
from sd_fairseq.plugin.criterions.sd_policy_criterion import SDPolicyCriterion
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.classification import classification_head_shape
from sd_fairseq.plugin.models.switchable_encoder import PathRequest
from sd_fairseq.plugin.tasks.switchable_sentence_prediction import (
    SwitchableSentencePredictionConfig,
    check_options,
    check_sizes,
)


def head_output(training, sample, path):
    """The head's output [B, K], without a graph."""
    with torch.no_grad():
        return training.model(**sample["net_input"], classification_head_name=HEAD, path=path)[0]


def quality_of(training, sample, path=PathRequest()):
    evaluator = training.task.build_evaluator(training.model, sample, 1, 0.0)
    return evaluator.score(path)[0]


@pytest.mark.parametrize("kind", ["mode", "dense"])
def test_quality_is_the_heads_cross_entropy_on_each_example(kind):
    training, sample = build_sentence_training(), build_sentences()
    logits = head_output(training, sample, PathRequest(kind))
    expected = F.cross_entropy(logits, sample["target"].view(-1), reduction="none")
    quality = quality_of(training, sample, PathRequest(kind))
    torch.testing.assert_close(quality.per_example, expected)
    torch.testing.assert_close(quality.loss, expected.sum())


def test_label_smoothing_is_torchs():
    training, sample = build_sentence_training(), build_sentences()
    logits = head_output(training, sample, PathRequest())
    expected = F.cross_entropy(logits, sample["target"].view(-1), label_smoothing=0.1, reduction="sum")
    evaluator = training.task.build_evaluator(training.model, sample, 1, 0.1)
    torch.testing.assert_close(evaluator.score(PathRequest())[0].loss, expected)


def test_regression_quality_is_the_squared_error():
    training = build_sentence_training({"regression_target": True, "num_classes": 1}, {"classes": 1})
    sample = {**build_sentences(), "target": torch.linspace(0, 1, 8).view(8, 1)}
    outputs = head_output(training, sample, PathRequest()).view(-1)
    torch.testing.assert_close(quality_of(training, sample).per_example, (outputs - sample["target"].view(-1)) ** 2)
    logged = training.update([sample])[0]
    assert logged["sample_size"] == 8 and not any(key.startswith("confusion") for key in logged)


@pytest.mark.parametrize("options", [{}, {"sd_score_function_flops": True}, {"sd_mode": "budget"}])
def test_an_update_moves_policy_backbone_and_head(options):
    training, sample = build_sentence_training(**options), build_sentences()
    policy, backbone = training.policy(), training.backbone()
    head = training.model.classification_heads[HEAD].out_proj.weight.detach().clone()
    training.update([sample])
    assert not torch.equal(training.policy(), policy) and not torch.equal(training.backbone(), backbone)
    assert not torch.equal(training.model.classification_heads[HEAD].out_proj.weight, head)


def test_two_micro_batches_make_the_same_update_as_one_batch():
    sample = build_sentences()
    whole, halves = build_sentence_training(), build_sentence_training()
    whole.update([sample])
    halves.update([pick_sentences(sample, range(4)), pick_sentences(sample, range(4, 8))])
    torch.testing.assert_close(whole.policy(), halves.policy())
    torch.testing.assert_close(whole.backbone(), halves.backbone(), rtol=1e-4, atol=1e-6)


def test_flops_are_those_of_the_head_and_not_of_an_lm_head():
    training, sample = build_sentence_training(), build_sentences()
    evaluator = training.task.build_evaluator(training.model, sample, 1, 0.0)
    assert evaluator.shape.head == HeadShape((32, 32, 3))
    lengths = evaluator.lengths(4)
    assert lengths.source.tolist() == lengths.target.tolist() == sample["net_input"]["src_lengths"].tolist()


def test_logged_scores_of_several_batches_are_scikit_learns_of_all_examples():
    training, sample = build_sentence_training(), build_sentences()
    training.model.eval()
    truth = sample["target"].view(-1)
    answers = head_output(training, sample, PathRequest()).argmax(dim=1)
    assert len(set(answers.tolist())) > 1  # else every score is trivial
    with metrics.aggregate() as shown:
        for rows in ([0, 1, 2], [3], [4, 5, 6, 7]):
            _, _, logged = training.criterion(training.model, pick_sentences(sample, rows))
            SDPolicyCriterion.reduce_metrics([logged])
    values = shown.get_smoothed_values()
    assert values["accuracy"] == pytest.approx(100 * accuracy_score(truth, answers), abs=0.01)
    assert values["f1"] == pytest.approx(
        100 * f1_score(truth, answers, average="macro", labels=[0, 1, 2], zero_division=0), abs=0.01
    )
    assert values["matthews"] == pytest.approx(100 * matthews_corrcoef(truth, answers), abs=0.01)
    counts = quality_of(training, sample).figures
    for true, answer in [(true, answer) for true in range(3) for answer in range(3)]:
        assert int(counts[f"confusion_{true}_{answer}"]) == int(((truth == true) & (answers == answer)).sum())
    nll = float(quality_of(training, sample).loss)
    assert values["loss"] == pytest.approx(nll / 8 / 0.6931472, abs=2e-3)
    assert "nll_loss" not in values and "ppl" not in values
    assert values["sd_flops_generation"] < 1


def test_workers_without_a_batch_leave_the_scores_alone():
    training, sample = build_sentence_training(), build_sentences()
    training.model.eval()
    logged = training.criterion(training.model, sample)[2]
    nothing = {key: 0 for key in logged}
    with metrics.aggregate() as one:
        reduce_head_metrics([logged])
    with metrics.aggregate() as two:
        reduce_head_metrics([nothing, logged])
    assert one.get_smoothed_values() == two.get_smoothed_values()


def test_a_class_that_the_head_does_not_have_is_refused_with_its_sentence():
    training, sample = build_sentence_training(), build_sentences()
    sample["target"][2] = -1  # fairseq's <unk> of a label dictionary
    with pytest.raises(InputError, match="sentence 12 is class -1, .* classes 0..2"):
        training.update([sample])


def test_data_without_labels_are_refused():
    training, sample = build_sentence_training(), build_sentences()
    del sample["target"]
    with pytest.raises(InputError, match="no labels"):
        training.criterion(training.model, sample)


def test_a_head_that_is_not_there_is_refused_by_name():
    with pytest.raises(InputError, match=f"'other' .*{HEAD}"):
        classification_head_shape(build_classifier(), "other")


def options_like(folder, **changes):
    for name in ("input0", "label"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "dict.txt").write_text("a 1\nb 1\n")
    values = {**vars(SwitchableSentencePredictionConfig(num_classes=2)), "data": str(folder), **changes}
    return SimpleNamespace(**values)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_classes": -1}, "--num-classes -1"),
        ({"shorten_method": "truncate"}, "--shorten-method truncate cuts off the final </s>"),
        ({"sd_token_strategies": "last:10"}, "--sd-token-strategies.*start with 'keep'"),
        ({"data": "no/such/folder"}, "no/such/folder/input0/dict.txt: no such file"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, change, message):
    check_options(options_like(tmp_path))
    with pytest.raises(InputError, match=message):
        check_options(options_like(tmp_path, **change))


def test_an_example_longer_than_the_model_takes_is_named():
    data = SimpleNamespace(sizes=[torch.tensor([5, 9, 12, 30]).numpy()])
    check_sizes(data, 30)
    with pytest.raises(InputError, match="sentence 2 has 12 tokens, the model takes 9.*2 such"):
        check_sizes(data, 9)


def test_the_policys_flops_gradient_is_of_the_heads_costs():
    training, sample = build_sentence_training(), build_sentences()
    model = training.model.eval()
    evaluator = training.task.build_evaluator(model, sample, 1, 0.0)
    found = policy_step(evaluator, training.criterion.settings, 0, measure_constraint=False).sums.flops
    states = evaluator.run(PathRequest("dense"))[1]["policy_states"]
    with trainable(model.encoder.policy) as parameters:
        distribution = model.encoder.policy(states)
        head, lm_head = (
            flat_gradient(expected_relative_flops("generation", shape, distribution, lengths).sum(), parameters, True)
            for shape, lengths in ((evaluator.shape, evaluator.lengths(1)), (model.shape, evaluator.lengths(1)))
        )
    torch.testing.assert_close(found, head.float(), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(found, lm_head.float(), rtol=0.05)


@pytest.mark.parametrize("mode", ["budget", "constrained"])
def test_the_violation_is_of_the_heads_costs_and_losses(mode):
    options = {"sd_mode": mode, "sd_flops_budget": 0.5, "sd_tolerance": 0.02, "sd_constraint_temperature": 0.0}
    training, sample = build_sentence_training(**options), build_sentences()
    evaluator = training.task.build_evaluator(training.model, sample, 1, 0.0)
    if mode == "constrained":
        gap = quality_of(training, sample).per_example - quality_of(training, sample, PathRequest("dense")).per_example
        expected = float(gap.mean()) - 0.02
    else:
        states = evaluator.run(PathRequest("dense"))[1]["policy_states"]
        nearly = training.model.encoder.policy(states).sharpened(0.02)
        lengths = evaluator.lengths(1)
        expected = float(expected_relative_flops("generation", evaluator.shape, nearly, lengths).mean()) - 0.5
    training.update([sample])
    assert float(training.model.policy_learner.violation) == pytest.approx(expected, abs=1e-5)
