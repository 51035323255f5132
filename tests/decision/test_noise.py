"""Randomness that belongs to an example: noise by id, and the random policy by source."""

import pytest
import torch
from factories import build_tiny_space, pad_rows, random_distribution, repeat_distribution

from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.decision.given_policies import RandomPolicy, uniform_distribution
from sd_fairseq.decision.noise import Noise

EXAMPLES = 20000
SIGMAS = 5.0
KOLMOGOROV = 2.65  # sup of the empirical bridge exceeds it with probability 2 exp(-2 * 2.65^2) < 2e-6


def all_noise(ids, salt, space):
    noise = Noise.for_examples(ids, salt, space)
    return torch.cat([noise.switches, noise.tokens], dim=1)


def assert_uniform_and_uncorrelated(values):
    """Kolmogorov-Smirnov distance of every column, and the correlation of every pair."""
    count = values.size(0)
    values = values.double()
    ordered = values.sort(dim=0).values
    ranks = torch.arange(1, count + 1, dtype=torch.double).unsqueeze(1) / count
    distance = (ranks - ordered).abs().maximum((ordered - ranks + 1 / count).abs()).max(dim=0).values
    assert (distance < KOLMOGOROV / count**0.5).all()
    correlation = torch.corrcoef(values.t()) - torch.eye(values.size(1))
    assert (correlation.abs() < SIGMAS / count**0.5).all()


@pytest.mark.parametrize("space", [build_tiny_space(), DecisionSpace.build(12, 12)], ids=["tiny", "large"])
@pytest.mark.parametrize("salt", [0, 1000003, 2 * 10**8 + 1])
def test_noise_of_consecutive_examples_is_uniform_and_uncorrelated(space, salt):
    noise = all_noise(torch.arange(EXAMPLES), salt, space)
    assert noise.min() >= 0 and noise.max() < 1
    assert_uniform_and_uncorrelated(noise)


def test_noise_of_one_example_is_uniform_over_updates():
    space = build_tiny_space()
    rows = [all_noise(torch.tensor([5]), 1000003 + 2 * update, space) for update in range(2000)]
    assert_uniform_and_uncorrelated(torch.cat(rows))


def test_noise_of_an_example_does_not_depend_on_its_batch():
    space = build_tiny_space()
    ids = torch.tensor([12, 7, 0, 99999999, 31])
    together = all_noise(ids, 4, space)
    for row, identity in enumerate(ids):
        assert torch.equal(all_noise(identity.view(1), 4, space)[0], together[row])
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(all_noise(ids[order], 4, space), together[order])


def test_another_salt_or_another_id_gives_other_noise():
    space = build_tiny_space()
    ids = torch.arange(100)
    assert (all_noise(ids, 1, space) != all_noise(ids, 2, space)).all()
    assert (all_noise(ids, 1, space) != all_noise(ids + 1, 1, space)).all()


def test_noise_fits_its_space():
    space = build_tiny_space()
    for noise in (Noise.for_examples(torch.arange(4), 1, space), Noise.draw(4, space, torch.device("cpu"))):
        assert noise.switches.shape == (4, space.num_switches)
        assert noise.tokens.shape == (4, 3)


def test_paths_sampled_by_id_have_the_policys_frequencies():
    space = build_tiny_space()
    one = random_distribution(space, dtype=torch.float32)
    decisions = repeat_distribution(one, EXAMPLES).sample(Noise.for_examples(torch.arange(EXAMPLES), 9, space))
    kept = space.to_keep(decisions).double().mean(dim=0)
    p = one.keep_probability[0].double()
    assert ((kept - p).abs() < SIGMAS * (p * (1 - p) / EXAMPLES).sqrt()).all()
    chosen = torch.bincount(decisions.token_choice, minlength=3) / EXAMPLES
    h = one.token_probability[0]
    assert ((chosen - h).abs() < SIGMAS * (h * (1 - h) / EXAMPLES).sqrt()).all()


def random_sources(count):
    """Sources of 2 to 12 tokens, 0 = padding."""
    return [torch.randint(1, 5000, (int(length),)) for length in torch.randint(2, 13, (count,))]


def decide(policy, rows, side="left", extra=0):
    tokens = pad_rows(rows, 0, side, extra)
    return policy.decide(tokens, tokens.eq(0))


def test_a_random_policy_ignores_batch_mates_and_padding():
    policy = RandomPolicy(DecisionSpace.build(6, 6), 0.7).eval()
    rows = random_sources(30)
    together = decide(policy, rows)
    for side in ("left", "right"):
        assert decide(policy, rows, side, extra=7).same_path(together).all()
    alone = [decide(policy, [row]) for row in rows]
    for index, one in enumerate(alone):
        assert one.same_path(together.index_select(torch.tensor([index]))).all()


def test_a_random_policy_depends_on_source_and_seed_and_not_on_torchs_generator():
    space = DecisionSpace.build(6, 6)
    rows = random_sources(200)
    first = decide(RandomPolicy(space, 0.5), rows)
    torch.manual_seed(77)
    assert decide(RandomPolicy(space, 0.5), rows).same_path(first).all()
    assert decide(RandomPolicy(space, 0.5, seed=2), rows).same_path(first).float().mean() < 0.05
    assert first.count_distinct_paths() > 195


def test_a_random_policy_draws_anew_every_update_while_training_only():
    policy = RandomPolicy(DecisionSpace.build(6, 6), 0.5)
    rows = random_sources(200)
    drawn = []
    for update in (0, 1, 2, 1):
        policy.set_num_updates(update)
        drawn.append(decide(policy.train(), rows))
    assert drawn[3].same_path(drawn[1]).all()
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert drawn[one].same_path(drawn[other]).float().mean() < 0.05
    deployed = decide(policy.eval(), rows)
    policy.set_num_updates(7)
    assert decide(policy, rows).same_path(deployed).all()


def test_a_random_policy_tells_the_order_of_tokens():
    policy = RandomPolicy(DecisionSpace.build(6, 6), 0.5)
    rows = [row for row in random_sources(200) if not torch.equal(row, row.flip(0))]
    backwards = [row.flip(0) for row in rows]
    assert decide(policy, backwards).same_path(decide(policy, rows)).float().mean() < 0.05


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 1.0])
def test_a_random_policy_keeps_at_its_probability(keep):
    space = DecisionSpace.build(6, 6)
    count = 4000
    decisions = decide(RandomPolicy(space, keep), random_sources(count))
    tolerance = SIGMAS * (keep * (1 - keep) / count) ** 0.5
    kept = space.to_keep(decisions).double()
    assert ((kept.mean(dim=0) - keep).abs() <= tolerance).all()
    expected = uniform_distribution(space, keep, 1).token_probability[0]
    chosen = torch.bincount(decisions.token_choice, minlength=len(expected)) / count
    assert ((chosen - expected).abs() <= SIGMAS * (expected * (1 - expected) / count).sqrt() + 1e-9).all()
    if 0 < keep < 1:
        kept = torch.cat([kept, (decisions.token_choice == 0).double().unsqueeze(1)], dim=1)
        correlation = torch.corrcoef(kept.t()) - torch.eye(space.num_switches + 1)
        assert (correlation.abs() < SIGMAS / count**0.5).all()


@pytest.mark.parametrize("keep", [-0.1, 1.5, float("nan")])
def test_a_keep_probability_that_cannot_be_is_an_error_naming_it(keep):
    with pytest.raises(ValueError, match=str(keep)):
        RandomPolicy(build_tiny_space(), keep)
