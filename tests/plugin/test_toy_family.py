"""A new family is its sub-layers, positions, sizes and one cost entry; all else is there."""

from pathlib import Path

import toy_family  # registers it
from factories import random_decisions
from laws import check_traced_flops
from training import build_samples, build_training


def test_a_toy_family_fits_into_sixty_lines_is_trained_and_generates_at_its_closed_form_cost():
    assert len(Path(toy_family.__file__).read_text(encoding="utf-8").splitlines()) < 60
    training, samples = build_training({"arch": "switchable_toy"}), build_samples()
    policy, backbone = training.policy(), training.backbone()
    for update in range(2):
        training.update(samples, update)
    assert not (training.policy().equal(policy) or training.backbone().equal(backbone))
    model = training.model.eval()
    assert type(model.decoder.layers[0]) is toy_family.ToyLayer
    check_traced_flops(model, random_decisions(model.space, 1, 0.5), length=13, beam=2)
