import pytest
import torch
from factories import build_tiny_space, enumerate_paths, random_distribution, repeat_distribution
from torch import nn

from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.decision.given_policies import uniform_distribution
from sd_fairseq.decision.layerwise_policy import LayerwisePolicyNetwork
from sd_fairseq.decision.policy import (
    LENGTH_CENTRE,
    LENGTH_SCALE,
    Float32Module,
    PolicyDistribution,
    PolicyNetwork,
    initial_bias,
    policy_input,
)

DRAWS = 20000
SIGMAS = 5.0  # a right sampler fails once in a million


def enumerated(space, distribution):
    """Every path of the space, and the one-example distribution repeated for each."""
    paths = enumerate_paths(space)
    return paths, repeat_distribution(distribution, len(paths))


def assert_frequencies(counts, probabilities, draws):
    tolerance = SIGMAS * (probabilities * (1 - probabilities) / draws).sqrt() + 1 / draws
    assert ((counts / draws - probabilities).abs() <= tolerance).all()


@pytest.mark.parametrize("options", [{}, {"parts": ["token"]}, {"parts": ["encoder", "decoder"]}])
def test_probabilities_over_the_whole_space_sum_to_1(options):
    space = build_tiny_space(**options)
    paths, distribution = enumerated(space, random_distribution(space))
    assert distribution.log_prob(paths).exp().sum() == pytest.approx(1.0, abs=1e-12)


def test_log_prob_is_the_product_of_switches_and_token_strategy():
    space = build_tiny_space()
    one = random_distribution(space)
    paths, distribution = enumerated(space, one)
    keep = space.to_keep(paths)
    for row in range(len(paths)):
        by_hand = one.token_probability[0, paths.token_choice[row]].item()
        for p, kept in zip(one.keep_probability[0].tolist(), keep[row].tolist()):
            by_hand *= p if kept else 1 - p
        assert distribution.log_prob(paths)[row].exp().item() == pytest.approx(by_hand, rel=1e-12)


def test_entropy_is_the_enumerated_sum():
    space = build_tiny_space()
    one = random_distribution(space)
    paths, distribution = enumerated(space, one)
    log_prob = distribution.log_prob(paths)
    assert one.entropy().item() == pytest.approx(-(log_prob.exp() * log_prob).sum().item(), rel=1e-12)


def test_log_prob_gradient_matches_finite_differences():
    space = build_tiny_space()
    one = random_distribution(space)
    paths = enumerate_paths(space)

    def log_prob(keep_logits, token_logits):
        return repeat_distribution(PolicyDistribution(space, keep_logits, token_logits), len(paths)).log_prob(paths)

    inputs = (one.keep_logits.requires_grad_(), one.token_logits.requires_grad_())
    assert torch.autograd.gradcheck(log_prob, inputs)


def test_saturated_logits_have_finite_log_prob_and_entropy():
    space = build_tiny_space()
    one = random_distribution(space, dtype=torch.float32)
    paths, distribution = enumerated(space, PolicyDistribution(space, one.keep_logits * 80, one.token_logits * 80))
    assert torch.isfinite(distribution.log_prob(paths)).all()
    assert torch.isfinite(distribution.entropy()).all()


@pytest.mark.parametrize("bound", [0.55, 0.8, 0.95])
def test_bounded_mixes_switches_with_their_opposite_and_tokens_with_uniform(bound):
    space = build_tiny_space()
    one = random_distribution(space)
    bounded = one.bounded(bound)
    p, h = one.keep_probability, one.token_probability
    torch.testing.assert_close(bounded.keep_probability, bound * p + (1 - bound) * (1 - p))
    torch.testing.assert_close(bounded.token_probability, bound * h + (1 - bound) / h.size(1))
    paths, distribution = enumerated(space, bounded)
    assert distribution.log_prob(paths).exp().sum() == pytest.approx(1.0, abs=1e-12)


def test_bound_1_changes_nothing():
    one = random_distribution(build_tiny_space())
    assert one.bounded(1.0) is one


def test_bounded_keeps_its_gradient():
    space = build_tiny_space()
    one = random_distribution(space)

    def probabilities(keep_logits, token_logits):
        bounded = PolicyDistribution(space, keep_logits, token_logits).bounded(0.8)
        return bounded.keep_probability, bounded.token_probability

    assert torch.autograd.gradcheck(
        probabilities, (one.keep_logits.requires_grad_(), one.token_logits.requires_grad_())
    )


def test_mode_is_the_most_probable_path():
    space = build_tiny_space()
    paths = enumerate_paths(space)
    for _ in range(20):
        one = random_distribution(space)
        best = repeat_distribution(one, len(paths)).log_prob(paths).argmax()
        assert one.mode().same_path(paths.index_select(best.view(1))).all()


def test_samples_sharpened_to_temperature_0_are_the_mode():
    distribution = random_distribution(build_tiny_space(), 200)
    assert distribution.sharpened(1e-6).sample().same_path(distribution.mode()).all()


def test_sharpening_divides_log_odds():
    one = random_distribution(build_tiny_space())
    sharp = one.sharpened(0.25)
    torch.testing.assert_close(torch.logit(sharp.keep_probability), 4 * torch.logit(one.keep_probability))
    ratio = sharp.token_probability[0, 0] / sharp.token_probability[0, 1]
    torch.testing.assert_close(ratio, (one.token_probability[0, 0] / one.token_probability[0, 1]) ** 4)


def test_sample_frequencies_match_the_probabilities_of_whole_paths():
    space = build_tiny_space()
    one = random_distribution(space, dtype=torch.float32)
    paths, distribution = enumerated(space, one)
    drawn = repeat_distribution(one, DRAWS).sample()
    weights = 2 ** torch.arange(space.num_switches)

    def number(decisions):
        return (space.to_keep(decisions) * weights).sum(dim=1) * 3 + decisions.token_choice

    counts = torch.bincount(number(drawn), minlength=len(paths))[number(paths)]
    assert_frequencies(counts, distribution.log_prob(paths).exp(), DRAWS)


def test_sampling_follows_torchs_generator():
    distribution = random_distribution(build_tiny_space(), 50)
    torch.manual_seed(3)
    first = distribution.sample()
    assert not distribution.sample().same_path(first).all()
    torch.manual_seed(3)
    assert distribution.sample().same_path(first).all()


@pytest.mark.parametrize("network", [PolicyNetwork, LayerwisePolicyNetwork])
def test_a_fresh_policy_deploys_the_dense_path_for_any_input(network):
    space = DecisionSpace.build(12, 12)
    policy = network(256, space)
    states = [torch.randn(64, 256) * 10 ** torch.randn(64, 1) for _ in policy.stages]
    assert policy(states).mode().same_path(space.keep_all(64, torch.device("cpu"))).all()


@pytest.mark.parametrize("keep", [0.6, 0.95])
def test_initial_bias_gives_every_switch_and_keep_all_the_same_probability(keep):
    space = build_tiny_space()
    bias = initial_bias(space, keep).unsqueeze(0)
    distribution = PolicyDistribution(space, bias[:, : space.num_switches], bias[:, space.num_switches :])
    torch.testing.assert_close(distribution.keep_probability, torch.full((1, space.num_switches), keep))
    others = (1 - keep) / 2
    torch.testing.assert_close(distribution.token_probability, torch.tensor([[keep, others, others]]))


@pytest.mark.parametrize("network", [PolicyNetwork, LayerwisePolicyNetwork])
def test_a_fresh_policy_with_an_initial_path_takes_it_with_the_probability_asked_for(network):
    space = DecisionSpace.build(12, 12)
    keep = torch.rand(1, space.num_switches) < 0.6
    path = space.to_decisions(keep, torch.tensor([2]))
    policy = network(256, space, initial_keep=0.85, initial_path=path)
    states = [torch.randn(64, 256) * 10 ** torch.randn(64, 1) for _ in policy.stages]
    distribution = policy(states)
    assert distribution.mode().same_path(path.index_select(torch.zeros(64, dtype=torch.long))).all()
    as_path = torch.where(keep, distribution.keep_probability, 1 - distribution.keep_probability)
    assert abs(float(as_path.detach().mean()) - 0.85) < 0.02
    assert abs(float(distribution.token_probability[:, 2].detach().mean()) - 0.85) < 0.1


@pytest.mark.parametrize("keep", [0.5, 1.0, 0.0, -1.0, float("nan")])
def test_an_initial_keep_probability_that_cannot_be_is_an_error_naming_it(keep):
    with pytest.raises(ValueError, match=str(keep)):
        PolicyNetwork(8, build_tiny_space(), initial_keep=keep)


def test_uniform_distribution_has_one_keep_probability_everywhere():
    space = build_tiny_space()
    distribution = uniform_distribution(space, 0.7, 5)
    torch.testing.assert_close(distribution.keep_probability, torch.full((5, space.num_switches), 0.7))
    torch.testing.assert_close(distribution.token_probability, torch.tensor([[0.7, 0.15, 0.15]]).expand(5, -1))


def test_a_layerwise_policy_reads_each_decision_from_its_own_layer():
    space = DecisionSpace.build(4, 2)
    policy = LayerwisePolicyNetwork(16, space)
    states = [torch.randn(3, 16) for _ in policy.stages]
    before = policy(states)
    stage_of_output = policy.stage_of_output()
    for stage in policy.stages:
        changed = [state + (index + 1 == stage) for index, state in enumerate(states)]
        changed[stage - 1] = torch.randn(3, 16)
        after = policy(changed)
        differs = torch.cat([after.keep_logits, after.token_logits], 1) != torch.cat(
            [before.keep_logits, before.token_logits], 1
        )
        assert differs.all(dim=0).tolist() == [own == stage for own in stage_of_output]
        assert differs.any(dim=0).tolist() == [own == stage for own in stage_of_output]
    for (site, layer), stage in zip(space.switches, stage_of_output):
        assert stage == (layer if site.startswith("encoder") else 4)  # layer from 0: the output of the one before


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(8, 8)
        self.policy = LayerwisePolicyNetwork(8, build_tiny_space())
        self.plain = PolicyNetwork(8, build_tiny_space())


@pytest.mark.parametrize(
    "cast",
    [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.to("cpu", torch.half)],
    ids=["half", "to-bfloat16", "bfloat16", "to-device-half"],
)
def test_float32_modules_survive_casts_with_the_same_values(cast):
    model = Nested()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cast(model)
    assert model.backbone.weight.dtype in (torch.float16, torch.bfloat16)
    for name, value in model.state_dict().items():
        if not name.startswith("backbone"):
            assert value.dtype == torch.float32 and torch.equal(value, before[name]), name
    distribution = model.plain([torch.randn(2, 8).to(model.backbone.weight.dtype)])
    assert distribution.keep_logits.dtype == torch.float32


def test_a_source_twice_as_long_moves_the_policys_length_by_one_step_from_0():
    state, lengths = torch.randn(4, 3), LENGTH_CENTRE * torch.tensor([0.5, 1, 2, 4])
    read = policy_input("length", state, lengths)
    torch.testing.assert_close(read, LENGTH_SCALE * torch.tensor([[-1.0], [0], [1], [2]]))
    assert torch.equal(policy_input("state+length", state, lengths), torch.cat([state, read], dim=1))


def test_float32_buffers_survive_casts_and_integers_stay_integers():
    module = Float32Module()
    module.register_buffer("moment", torch.tensor([1 / 3]))
    module.register_buffer("count", torch.tensor([7]))
    module.half()
    assert torch.equal(module.moment, torch.tensor([1 / 3])) and module.moment.dtype == torch.float32
    assert module.count.dtype == torch.long
