"""The benchmark of a training update: turns are alike, and each kind is measured in a process of its own."""

import argparse
import importlib

import measure
import pytest
import training_step
import turns

SETTINGS = {"size": "tiny", "batch_size": 1, "source_length": 12, "target_length": 4, "threads": 1, "device": "cpu"}


@pytest.mark.parametrize("interval", [1, 2, 4])
def test_every_turn_measures_the_constraint_equally_often(interval, monkeypatch):
    criterion = importlib.import_module("sd_fairseq.plugin.criterions.sd_policy_criterion")
    measured, policy_step = [], criterion.policy_step

    def note(evaluator, settings, update, measures):
        measured.append(measures)
        return policy_step(evaluator, settings, update, measures)

    monkeypatch.setattr(criterion, "policy_step", note)
    dictionary = measure.build_dictionary(100)
    monkeypatch.setattr(measure, "build_dictionary", lambda: dictionary)
    candidate = training_step.Training({**SETTINGS, "kind": "paper", "constraint_interval": interval})
    for _ in range(3):
        candidate.warm_up()
        measured.clear()
        candidate.run()
        assert measured.count(True) == training_step.UPDATES / interval and len(measured) == training_step.UPDATES
    assert candidate.result(None)["peak_gb"] > 0.05


@pytest.mark.parametrize("fails", ["build", "crash"])
def test_all_kinds_or_nothing(fails, monkeypatch, stand_in, capfd):
    start = turns.Workers.start
    monkeypatch.setattr(turns.Workers, "start", lambda self, name: start(self, name, stand_in))
    with pytest.raises(SystemExit, match="^there is nothing to compare$"):
        training_step.take_turns(argparse.Namespace(rounds=1, fails=fails))
    assert [line.split(": left out")[0] for line in capfd.readouterr().err.splitlines()] == list(training_step.KINDS)


@pytest.mark.parametrize("kind, learns", [("learning", True), ("deployed", False)])
def test_the_policy_learns_or_is_fixed_and_the_teacher_is_asked(kind, learns, monkeypatch):
    criterion = importlib.import_module("sd_fairseq.plugin.criterions.sd_policy_criterion")
    learnt, policy_step = [], criterion.policy_step
    monkeypatch.setattr(criterion, "policy_step", lambda *some: learnt.append(some) or policy_step(*some))
    taught, mix = [], criterion.Distiller.mix
    monkeypatch.setattr(criterion.Distiller, "mix", lambda *some: taught.append(some[0].teacher) or mix(*some))
    dictionary = measure.build_dictionary(100)
    monkeypatch.setattr(measure, "build_dictionary", lambda: dictionary)
    training_step.Training({**SETTINGS, "kind": kind, "constraint_interval": 4}).run()
    assert bool(learnt) == learns
    assert len(taught) >= training_step.UPDATES and all(teacher is not None for teacher in taught)
