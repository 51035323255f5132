"""One forward pass decides along the path that was asked for, from what the policy sees of the real tokens."""

import pytest
import torch
from factories import build_tiny_space, random_decisions

from sd_fairseq.decision.decider import PATHS, Decider, PathRequest, masked_mean
from sd_fairseq.decision.noise import Noise
from sd_fairseq.decision.policy import PolicyNetwork

SPACE, TOKENS = build_tiny_space(), torch.full((40, 5), 7)
PADDING = torch.zeros(40, 5, dtype=torch.bool)
STATES = torch.randn(5, 40, 8, generator=torch.Generator().manual_seed(2))


def build_policy():
    policy = PolicyNetwork(8, SPACE)
    torch.nn.init.normal_(policy.heads.weight)
    torch.nn.init.normal_(policy.heads.bias)
    return policy


def decide(policy, path):
    decider = Decider(SPACE, policy, path, TOKENS, PADDING)
    decider.decide(1, STATES)
    return decider.decisions()


def same(left, right):
    return bool(left.same_path(right).all())


def test_every_kind_of_path_is_what_the_policy_says_of_it():
    policy, noise = build_policy(), Noise.draw(40, SPACE, TOKENS.device)
    distribution = policy([masked_mean(STATES, PADDING)])
    dense = SPACE.keep_all(40, TOKENS.device)
    assert same(decide(policy, PathRequest()), distribution.mode())
    assert same(decide(policy, PathRequest("sample", noise=noise)), distribution.sample(noise))
    assert same(decide(policy, PathRequest("sharpened", noise=noise)), distribution.sample(noise))
    bounded = PathRequest("sample", bound=0.6, noise=noise)
    assert same(decide(policy, bounded), distribution.bounded(0.6).sample(noise))
    for without in (decide(policy, PathRequest("dense")), decide(None, PathRequest())):
        assert same(without, dense)
    assert len({tuple(decide(policy, PathRequest(kind, noise=noise)).encoder_ffn[:, 1].tolist()) for kind in PATHS}) > 1


def test_a_given_path_is_taken_whatever_the_policy_says():
    given = random_decisions(SPACE, 40)
    assert same(decide(build_policy(), PathRequest(decisions=given)), given)


def test_a_path_of_no_kind_is_refused():
    with pytest.raises(ValueError, match="'greedy' is not one of mode, sample"):
        decide(None, PathRequest("greedy"))


def test_the_policy_sees_the_mean_over_real_tokens():
    padding = torch.tensor([[True, True, False, False], [False] * 4, [True, False, True, False]])
    x = torch.randn(4, 3, 2, requires_grad=True)
    found = masked_mean(x, padding)
    expected = torch.stack([x[2:, 0].mean(0), x[:, 1].mean(0), x[[1, 3], 2].mean(0)])
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
