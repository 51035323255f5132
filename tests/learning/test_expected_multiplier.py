"""On a space that can be listed: the multiplier of many updates is the one of the exact gradients, for every estimator.

The model is a table: a path's loss is a quadratic form of what it keeps, so that expectations are sums over all paths.
"""

from types import SimpleNamespace

import pytest
import torch
from factories import build_tiny_space, enumerate_paths

pytest.importorskip("fairseq")

from sd_fairseq.cost.path_flops import Lengths, ModelShape
from sd_fairseq.decision.policy import PolicyNetwork, split_logits
from sd_fairseq.learning.lexicographic import MultiplierRule, Products, averaged_products, find_multiplier
from sd_fairseq.plugin.criterions.policy_step import PolicyStepSettings, policy_step
from sd_fairseq.plugin.criterions.quality import Quality

EXAMPLES, UPDATES, BOUND = 16, 500, 0.95
RULE = MultiplierRule(mode="constrained", alpha=1.0, ceiling=1e9)
VIOLATION = torch.tensor(0.3)


class Table:
    """Stands for a model on one batch, as :class:`policy_step.Evaluator` does."""

    shape = ModelShape(16, 16, 32, 32, 96)

    def __init__(self):
        torch.manual_seed(2)
        self.space = build_tiny_space(parts=["encoder", "decoder"])
        self.states = torch.randn(EXAMPLES, 4)
        count = self.space.num_switches
        self.linear, self.square = 1 + torch.randn(EXAMPLES, count), 0.2 * torch.randn(EXAMPLES, count, count)
        policy = PolicyNetwork(4, self.space, initial_keep=0.7)
        torch.nn.init.normal_(policy.heads.weight, std=0.3)
        self.model = SimpleNamespace(space=self.space, encoder=SimpleNamespace(policy=policy))
        self.sample = {"id": torch.arange(EXAMPLES)}

    def losses(self, keep):
        """[B] of kept switches [B, count]."""
        return (self.linear * keep).sum(1) + torch.einsum("bi,bij,bj->b", keep, self.square, keep)

    def distribution(self):
        return split_logits(self.space, self.model.encoder.policy.stage_logits(1, self.states))

    def run(self, request):
        with torch.no_grad():
            decided = self.distribution()
            mode = request.kind == "mode"
            decisions = decided.mode() if mode else decided.bounded(request.bound).sample(request.noise)
        gates = self.space.to_keep(decisions).float().requires_grad_()
        per_example = self.losses(gates)
        quality = Quality(per_example.sum(), per_example.sum(), per_example.detach(), torch.ones(EXAMPLES))
        return quality, {"decisions": decisions, "policy_states": [self.states], "switch_gates": [gates]}

    def score(self, request):
        quality, extra = self.run(request)
        return quality, extra["decisions"]

    def lengths(self, beam):
        return Lengths(torch.arange(10, 10 + EXAMPLES), torch.arange(3, 3 + EXAMPLES), beam)

    def exact_gradients(self):
        """Means over even and over odd examples of the expected loss's gradient, [2, P]."""
        policy = self.model.encoder.policy.requires_grad_(True)
        paths = enumerate_paths(self.space)
        keep = self.space.to_keep(paths).float()  # [paths, count]
        bounded = self.distribution().bounded(BOUND).keep_probability  # [B, count]
        share = (bounded.unsqueeze(1) * keep + (1 - bounded).unsqueeze(1) * (1 - keep)).prod(dim=2)  # [B, paths]
        losses = torch.stack([self.losses(one.expand(EXAMPLES, -1)) for one in keep], dim=1)  # [B, paths]
        expected = (share * losses).sum(dim=1)
        halves = []
        for half in (expected[0::2], expected[1::2]):
            gradient = torch.autograd.grad(half.mean(), list(policy.parameters()), retain_graph=True)
            halves.append(torch.cat([one.reshape(-1) for one in gradient]))
        policy.requires_grad_(False)
        return torch.stack(halves)


def settings(estimator):
    about = {"temperature": 0.0, "tolerance": 0.0, "flops_budget": None, "definition": "generation"}
    more = {"exact_flops_gradient": True, "beam": 2, "seed": 3, "estimator": estimator, "samples": 3, "halves": True}
    return PolicyStepSettings(bound=BOUND, **about, **more)


def run_updates(table, estimator):
    """What many updates of a policy that stands still see: products [N, 5], gradients of the halves [N, 2, P]."""
    products, gradients, flops = [], [], None
    for update in range(UPDATES):
        sums = policy_step(table, settings(estimator), update, measure_constraint=False).sums
        products.append(sums.cross_products())
        even = (sums.quality - sums.odd_quality) / (sums.examples - sums.odd_examples)
        gradients.append(torch.stack([even, sums.odd_quality / sums.odd_examples]))
        flops = torch.stack([(sums.flops - sums.odd_flops) / (EXAMPLES / 2), sums.odd_flops / (EXAMPLES / 2)])
    return torch.stack(products), torch.stack(gradients), flops


@pytest.mark.parametrize("estimator", ["score-function", "leave-one-out", "straight-through", "reinmax"])
def test_the_expected_products_and_multiplier_are_those_of_the_expected_gradients(estimator):
    table = Table()
    products, gradients, flops = run_updates(table, estimator)
    unbiased = estimator in ("score-function", "leave-one-out")
    quality = table.exact_gradients() if unbiased else gradients.mean(dim=0)
    if unbiased:  # the estimator itself: no direction is off by more than its error, in all but a few of so many
        error = gradients.std(dim=0) / UPDATES**0.5
        assert float(((gradients.mean(dim=0) - quality).abs() > 4 * error + 1e-6).float().mean()) < 0.002
    exact = Products((quality[0] @ flops[1] + quality[1] @ flops[0]) / 2, quality[0] @ quality[1], flops[0] @ flops[1])
    error = products.std(dim=0) / UPDATES**0.5
    assert abs(float(products[:, 0].mean() - exact.dot)) < 4 * float(error[0]) + 1e-6
    assert abs(float(products[:, 1].mean() - exact.quality)) < 4 * float(error[1]) + 1e-6
    assert float(products[:, 2].mean()) == pytest.approx(float(exact.flops), rel=1e-4)
    wanted = float(find_multiplier(RULE, quality[0], flops[0], VIOLATION, exact))
    found = float(find_multiplier(RULE, quality[0], flops[0], VIOLATION, averaged_products(products.mean(dim=0))))
    spread = float(error[1] / exact.quality) + float(error[0]) / abs(float(VIOLATION - exact.dot))
    assert found == pytest.approx(wanted, rel=4 * spread + 1e-3) and spread < 0.5
    naive = float(find_multiplier(RULE, gradients[0].mean(dim=0), flops.mean(dim=0), VIOLATION))
    assert naive < wanted  # of one update's own square, noise and all


def test_halves_that_share_their_noise_would_be_seen():
    """The law sees the fault that it is there for: both halves drawn with the same noise."""
    table = Table()
    table.sample["id"] = torch.arange(EXAMPLES)
    table.linear[1::2], table.square[1::2] = table.linear[0::2].clone(), table.square[0::2].clone()
    table.states[1::2] = table.states[0::2].clone()
    _, gradients, _ = run_updates(table, "score-function")
    shared = (gradients[:, 0] * gradients[:, 0]).sum(dim=1)  # what a half's product with its twin would be
    apart = (gradients[:, 0] * gradients[:, 1]).sum(dim=1)
    exact = float((table.exact_gradients()[0] ** 2).sum())
    error = float(apart.std()) / UPDATES**0.5
    assert abs(float(apart.mean()) - exact) < 4 * error < abs(float(shared.mean()) - exact)
