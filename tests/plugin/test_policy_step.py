"""The objectives of one micro-batch, against the enumerated space."""

import pytest
import torch
from factories import build_tiny_space, enumerate_paths, random_distribution, repeat_distribution
from training import build_samples, build_training

from sd_fairseq.cost.path_flops import Lengths, ModelShape, expected_relative_flops
from sd_fairseq.learning.reinforce import flat_gradient
from sd_fairseq.plugin.criterions.policy_step import (
    Evaluator,
    PolicyStepSettings,
    constraint_sums,
    flops_objective,
    policy_step,
    trainable,
)
from sd_fairseq.plugin.criterions.quality import Quality

SHAPE = ModelShape(16, 16, 32, 32, 90, policy_hidden=16, policy_networks=1)
SPACE = build_tiny_space()


def settings(**changes):
    given = {
        "bound": 1.0,
        "temperature": 0.25,
        "tolerance": 0.05,
        "flops_budget": None,
        "definition": "generation",
        "exact_flops_gradient": True,
        "beam": 2,
        "seed": 1,
    }
    return PolicyStepSettings(**{**given, **changes})


def lengths(count):
    return Lengths(torch.full((count,), 23), torch.full((count,), 6), 2)


@pytest.mark.parametrize("definition", ["generation", "paper"])
def test_score_function_flops_gradient_is_the_exact_one_in_expectation(definition):
    paths = enumerate_paths(SPACE)
    one = random_distribution(SPACE)
    logits = [one.keep_logits.requires_grad_(), one.token_logits.requires_grad_()]
    exact_settings = settings(definition=definition)
    mode = one.mode()
    exact = flops_objective(one, one.log_prob(mode), mode, mode, SHAPE, lengths(1), exact_settings, torch.ones(1))
    exact = flat_gradient(exact, logits)

    repeated = repeat_distribution(one, len(paths))
    log_prob = repeated.log_prob(paths)
    probability = log_prob.detach().exp()
    modes = mode.index_select(torch.zeros(len(paths), dtype=torch.long))
    estimates = settings(definition=definition, exact_flops_gradient=False)
    about = SHAPE, lengths(len(paths)), estimates, torch.ones(len(paths))
    weighted = flops_objective(repeated, log_prob * probability, paths, modes, *about)
    torch.testing.assert_close(flat_gradient(weighted, logits), exact, atol=1e-6, rtol=1e-5)


def test_a_budgets_violation_is_the_expected_flops_of_the_sharpened_policy_beyond_it():
    several = random_distribution(SPACE, 5)
    found, measured = constraint_sums(settings(flops_budget=0.6), several, SHAPE, lengths(5), torch.ones(5), None, None)
    expected = expected_relative_flops("generation", SHAPE, several.sharpened(0.25), lengths(5)) - 0.6
    assert float(found) == pytest.approx(float(expected.sum()), rel=1e-5)
    assert float(measured) == 5


def test_a_quality_violation_is_the_gap_to_the_dense_path_beyond_the_tolerance():
    def quality(values):
        return Quality(torch.zeros(()), torch.zeros(()), values, torch.ones(3))

    worse, dense = torch.tensor([2.0, 1.5, 3.0]), torch.tensor([1.9, 1.7, 2.0])
    several = random_distribution(SPACE, 3)
    found, measured = constraint_sums(
        settings(), several, SHAPE, lengths(3), torch.ones(3), quality(worse), quality(dense)
    )
    assert float(found) == pytest.approx(0.1 - 0.2 + 1.0 - 3 * 0.05, rel=1e-5)
    assert float(measured) == 3
    unmeasured = constraint_sums(settings(), several, SHAPE, lengths(3), torch.ones(3), None, None)
    assert [float(value) for value in unmeasured] == [0.0, 0.0]


def test_the_policys_parameters_take_gradients_inside_the_block_only():
    policy = build_training().model.encoder.policy
    with pytest.raises(RuntimeError, match="inside"), torch.no_grad(), trainable(policy) as parameters:
        assert all(parameter.requires_grad for parameter in parameters) and torch.is_grad_enabled()
        raise RuntimeError("inside")
    assert not any(parameter.requires_grad for parameter in policy.parameters())


def test_the_quality_gradient_is_0_where_every_sample_is_the_mode():
    """Whatever dropout did to the two passes."""
    training, (sample,) = build_training({"dropout": 0.5}, mixed_paths=False), build_samples()
    policy = training.model.encoder.policy
    with torch.no_grad():
        policy.heads.bias[: training.model.space.num_switches] = 40.0
        policy.heads.bias[training.model.space.num_switches] = 40.0
    evaluator = Evaluator(training.model.train(), sample, 1, 0.0)
    step = policy_step(evaluator, settings(), update=0, measure_constraint=False)
    assert not torch.equal(step.trained.per_example, step.mode.per_example)
    assert torch.equal(step.sums.quality, torch.zeros_like(step.sums.quality))


def test_gradients_are_the_score_function_of_the_advantage_and_the_closed_form_of_flops():
    training, (sample,) = build_training(), build_samples()
    model = training.model.eval()  # one pass is as good as another
    evaluator = Evaluator(model, sample, 1, 0.0)
    chosen = settings(bound=0.8)
    step = policy_step(evaluator, chosen, update=3, measure_constraint=False)

    policy, parameters = model.encoder.policy, list(model.encoder.policy.parameters())
    _, extra = evaluator.run(step_path(evaluator, chosen, 3))
    for parameter in parameters:
        parameter.requires_grad_(True)
    distribution = policy(extra["policy_states"])
    advantage = step.trained.per_example - step.mode.per_example
    objective = (advantage * distribution.bounded(0.8).log_prob(extra["decisions"])).sum()
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(objective, parameters, retain_graph=True)])
    torch.testing.assert_close(step.sums.quality, expected, atol=1e-5, rtol=1e-4)
    flops = expected_relative_flops("generation", model.shape, distribution, step.lengths).sum()
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(flops, parameters)])
    torch.testing.assert_close(step.sums.flops, expected, atol=1e-6, rtol=1e-4)
    assert float(step.sums.examples) == 8


def step_path(evaluator, chosen, update):
    """The sampled path of an update, found again."""
    seen = []
    hook = evaluator.model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["path"]), with_kwargs=True
    )
    policy_step(evaluator, chosen, update, measure_constraint=False)
    hook.remove()
    assert [path.kind for path in seen] == ["sample", "mode"]
    return seen[0]


@pytest.mark.parametrize("estimator", ["score-function", "reinmax"])  # all four: learning/test_expected_multiplier.py
def test_the_two_halves_of_a_batch_are_sampled_independently(estimator):
    """So the mean of their product is the product of their means, whatever the estimator."""
    training = build_training(sd_estimator=estimator, sd_constraint_interval=1000)
    (sample,) = build_samples()
    training.criterion.train()
    even, odd = [], []
    for update in range(120):
        training.step(sample, update)
        (sums,) = training.criterion.pending
        training.criterion.pending = []
        odd.append(sums.odd_quality / sums.odd_examples)
        even.append((sums.quality - sums.odd_quality) / (sums.examples - sums.odd_examples))
    left, right = torch.stack(even).double(), torch.stack(odd).double()
    products = (left * right).sum(dim=1)
    error = float(products.std()) / len(products) ** 0.5
    assert abs(float(products.mean()) - float(left.mean(0) @ right.mean(0))) < 4 * error
    squares = ((left + right) / 2).pow(2).sum(dim=1)
    if estimator == "score-function":  # what the naive norm would take for the gradient's square
        assert float(squares.mean()) > 2 * float(((left.mean(0) + right.mean(0)) / 2).pow(2).sum())
