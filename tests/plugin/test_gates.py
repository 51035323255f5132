"""A gated path (``PathRequest.gated``) computes what skipping computes, and has gradients for its decisions."""

import pytest
import torch
from factories import T5, random_decisions
from training import build_samples, build_training

from sd_fairseq.plugin.criterions.policy_step import Evaluator
from sd_fairseq.plugin.models.switchable_encoder import PathRequest


def run(training, sample, path):
    """Quality and the backbone's gradient of one path."""
    training.model.zero_grad()
    quality, extra = Evaluator(training.model, sample, 1, 0.1).run(path)
    quality.loss.backward()
    named = training.model.named_parameters()
    return quality, extra, {name: p.grad for name, p in named if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"sd_skip_keeps_layer_norm": True}, T5], ids=str)
def test_a_gated_path_has_the_values_and_the_backbone_gradient_of_the_skipping_path(options):
    training, (sample,) = build_training(options), build_samples()
    decisions = random_decisions(training.model.space, 8)
    skipping, _, expected = run(training, sample, PathRequest(decisions=decisions))
    gated, extra, found = run(training, sample, PathRequest(decisions=decisions, gated=True))
    torch.testing.assert_close(gated.per_example, skipping.per_example, atol=1e-5, rtol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4)
    (gates,) = extra["switch_gates"]
    assert torch.equal(gates.bool(), training.model.space.to_keep(decisions))


def test_the_slope_at_a_gate_is_what_moving_it_a_little_does():
    training, (sample,) = build_training(), build_samples()
    space, model = training.model.space, training.model.double()
    decisions = random_decisions(space, 8)
    original = space.spread
    nudge = torch.zeros(8, space.num_switches, dtype=torch.double)

    class Nudged(type(space)):
        def spread(self, values):
            return original(values + nudge if values.is_floating_point() else values)

    model.encoder.space = Nudged(**vars(space))
    evaluator = Evaluator(model.eval(), sample, 1, 0.0)

    def losses():
        quality, extra = evaluator.run(PathRequest(decisions=decisions, gated=True))
        return quality.nll, extra["switch_gates"][0]

    nll, gates = losses()
    (slope,) = torch.autograd.grad(nll, [gates])
    for switch in range(0, space.num_switches, 3):
        nudge[2, switch] = 5e-3
        higher = float(losses()[0].detach())
        nudge[2, switch] = -5e-3
        lower = float(losses()[0].detach())
        nudge[2, switch] = 0.0
        assert float(slope[2, switch]) == pytest.approx((higher - lower) / 1e-2, rel=0.03, abs=0.02)


def test_an_ordinary_path_after_a_gated_one_skips_again():
    training, (sample,) = build_training(), build_samples()
    model = training.model
    calls = []
    model.decoder.layers[0].fc1.register_forward_hook(lambda *_: calls.append(1))
    decisions = random_decisions(model.space, 8, keep_probability=0.0)
    Evaluator(model, sample, 1, 0.0).run(PathRequest(decisions=decisions, gated=True))
    assert calls
    calls.clear()
    _, extra = Evaluator(model, sample, 1, 0.0).run(PathRequest(decisions=decisions))
    assert not calls and not extra["switch_gates"]
