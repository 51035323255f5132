"""The table of estimators: what it calls signal and noise is that, and it refuses what it cannot measure."""

import pytest
import torch
from training import build_samples, build_training

from sd_fairseq.commands.measure_noise import main
from sd_fairseq.plugin.criterions.policy_step import Evaluator
from sd_fairseq.study import path_scorer
from sd_fairseq.study.gradient_noise import ESTIMATORS, estimate_gradient, measure_batch, measure_noise, summarise


def test_signal_and_noise_of_known_gradients():
    """Normal noise of variance 4 in each of 50 coordinates around a mean of squared length 9."""
    generator = torch.Generator().manual_seed(3)
    mean = torch.zeros(50)
    mean[:9] = 1.0
    found = [
        measure_noise(list(mean + 2.0 * torch.randn(20, 50, generator=generator)), seconds=40.0) for _ in range(200)
    ]
    assert all(one.seconds == 2.0 for one in found)
    assert sum(one.variance for one in found) / 200 == pytest.approx(200.0, rel=0.03)
    assert sum(one.signal for one in found) / 200 == pytest.approx(9.0, rel=0.1)  # |mean|^2 alone would be 19


def test_equal_gradients_have_no_noise_and_all_the_signal():
    noise = measure_noise([torch.tensor([3.0, 4.0])] * 5, 1.0)
    assert noise.variance == 0.0 and noise.signal == pytest.approx(25.0)


def build_evaluator(**options):
    training, (sample,) = build_training(options), build_samples()
    return Evaluator(training.model.train(), sample, 1, 0.0)


def test_more_samples_an_example_are_less_noise():
    batch = measure_batch(build_evaluator(), ["leave-one-out-2", "leave-one-out-4"], repeats=60, bound=0.95)
    assert batch["leave-one-out-4"].variance < 0.6 * batch["leave-one-out-2"].variance


def test_a_row_for_every_estimator_and_every_estimate_its_own_paths():
    evaluator = build_evaluator()
    rows = summarise([measure_batch(evaluator, list(ESTIMATORS), repeats=3, bound=0.95)] * 2)
    assert [row["estimator"] for row in rows] == list(ESTIMATORS)
    for row in rows:
        assert row["noise"] > 0 and row["seconds"] > 0 and -1.0 <= row["cosine"] <= 1.0
    one, other = (estimate_gradient(evaluator, "score-function", 1, 0.95, update) for update in (0, 1))
    assert not torch.equal(one, other)


def test_the_gradient_is_the_one_that_training_adds_up():
    training, (sample,) = build_training(sd_estimator="leave-one-out", sd_samples=2), build_samples()
    training.model.train()
    training.criterion.train()
    torch.manual_seed(5)
    training.step(sample, 0)
    wanted = training.criterion.pending[0].quality / 8
    torch.manual_seed(5)
    found = estimate_gradient(Evaluator(training.model, sample, 1, 0.0), "leave-one-out", 2, 0.95, 0)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options,said",
    [
        (["--estimators", "guess"], "--estimators 'guess' is none of score-function"),
        (["--repeats", "1"], "--repeats 1 --batches 4: expected 2 or more"),
        ([], "no-such.pt"),
    ],
)
def test_what_cannot_be_measured_is_one_line(options, said, capsys, tmp_path):
    assert main([str(tmp_path), "--path", "no-such.pt", *options]) == 1
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_overrides_that_are_no_object_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(path_scorer, "check_checkpoint", lambda *_: None)
    assert main([str(tmp_path), "--path", "any.pt", "--model-overrides", "[1]"]) == 1
    message = capsys.readouterr().err
    assert "--model-overrides '[1]': expected a JSON object" in message and message.count("\n") == 1
