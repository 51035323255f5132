"""Presets: what is given wins, what is not given is filled in, what would have no effect is refused."""

from argparse import Namespace

import pytest

pytest.importorskip("fairseq")
from sd_fairseq.learning.lexicographic import MODES  # noqa: E402
from sd_fairseq.plugin.criterions.options import SDPolicyCriterionConfig, check_options  # noqa: E402
from sd_fairseq.plugin.guards import presets  # noqa: E402
from sd_fairseq.plugin.guards.errors import InputError  # noqa: E402
from sd_fairseq.plugin.guards.preflight import typed_options  # noqa: E402
from sd_fairseq.plugin.models.options import fill_defaults  # noqa: E402

RUN = presets.Run(max_update=4000, base="bart.pt")
OF_MODE = {name: modes for name, modes in presets._MODES_OF.items()}


def filled(run=RUN, **given):
    """A criterion's options with a preset filled in."""
    cfg = SDPolicyCriterionConfig(**given)
    presets.fill_criterion(cfg, run)
    return cfg


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["network", "layerwise", "random", "static", "dense"])
def test_every_preset_fills_every_mode_with_options_in_their_ranges(preset, mode, policy):
    cfg = filled(presets.Run(4000, "bart.pt", policy), sd_preset=preset, sd_mode=mode)
    assert cfg.sd_mode == mode
    assert all(getattr(cfg, name) is not None for name in presets._PAPER)
    check_options(cfg)
    if policy == "layerwise":
        assert cfg.sd_estimator == "score-function"


def test_the_recommended_preset_bounds_flops_unless_a_tolerance_bounds_the_loss():
    assert (filled().sd_mode, filled().sd_flops_budget) == ("budget", 0.7)
    bounded = filled(sd_tolerance=0.1)
    assert (bounded.sd_mode, bounded.sd_tolerance) == ("constrained", 0.1)
    # a bound on the loss compares with the dense path, which must stand still meanwhile
    assert bounded.sd_policy_warmup_updates == bounded.sd_policy_freeze_update > 0
    assert filled().sd_policy_warmup_updates == 0


@pytest.mark.parametrize("updates, freeze", [(400, 300), (1200, 300), (1204, 301), (20000, 5000)])
def test_the_policy_gets_a_quarter_of_the_updates_and_at_least_300(updates, freeze):
    assert filled(presets.Run(updates)).sd_policy_freeze_update == freeze


def test_a_policy_for_a_range_learns_for_twice_as_long_and_keeps_its_budgets():
    served = filled(presets.Run(4000, serves_range=True))
    assert served.sd_policy_freeze_update == 2 * filled(presets.Run(4000)).sd_policy_freeze_update
    assert (served.sd_track_budget, filled().sd_track_budget) == ("yes", "no")


def test_a_training_of_unknown_length_is_asked_for_it():
    with pytest.raises(InputError, match="--max-update"):
        filled(presets.Run())
    assert filled(presets.Run(), sd_policy_freeze_update=50).sd_policy_freeze_update == 50
    for nothing_learns in (presets.Run(policy="dense"), presets.Run(trains=False)):
        assert filled(nothing_learns).sd_policy_freeze_update == 0


def test_the_teacher_is_the_checkpoint_that_training_starts_from_and_nobody_else_unasked():
    assert (filled().sd_distillation, filled().sd_teacher) == (0.9, "bart.pt")
    alone = presets.Run(4000)
    assert (filled(alone).sd_distillation, filled(alone).sd_teacher) == (0.0, None)
    assert filled(sd_distillation=0.0).sd_teacher is None
    with pytest.raises(InputError, match="--sd-teacher"):
        filled(alone, sd_distillation=0.5)
    assert filled(alone, sd_distillation=0.5, sd_teacher="self").sd_teacher == "self"


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("name", [*presets._PAPER, "sd_violation_smoothing"])
def test_a_value_that_is_given_stays(preset, name):
    values = {"sd_mode": "barrier", "sd_estimator": "leave-one-out"}
    given = values.get(name, 0.123 if name.startswith(("sd_violation", "sd_dist")) else 7)
    assert getattr(filled(sd_preset=preset, **{name: given}), name) == given


def test_filling_in_twice_changes_nothing():
    cfg = filled()
    before = dict(vars(cfg))
    assert presets.fill_criterion(cfg, presets.Run()) == [] and dict(vars(cfg)) == before


def test_options_of_an_old_checkpoint_keep_their_values():
    """Made before presets: every option has a value, and the model names none."""
    old = {**presets._PAPER, "sd_tolerance": 0.02, "sd_violation_smoothing": None}
    cfg = filled(presets.Run(), **old)
    assert {name: getattr(cfg, name) for name in old} == old
    model = Namespace(sd_initial_keep=0.9)
    fill_defaults(model)
    assert (model.sd_initial_keep, model.sd_space) == (0.9, "encoder,decoder,token")


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_model_takes_the_presets_values_and_keeps_those_that_are_given(preset):
    model = Namespace(sd_preset=preset, sd_initial_keep=0.6)
    fill_defaults(model)
    assert model.sd_initial_keep == 0.6
    assert model.sd_space == presets.MODEL_VALUES[preset]["sd_space"]


def test_the_log_names_what_was_filled_in_and_has_an_effect():
    names = [line.split()[0] for line in presets.fill_criterion(SDPolicyCriterionConfig(sd_alpha=3.0), RUN)]
    assert "flops-budget" in names and "estimator" in names
    assert not {"alpha", "tolerance", "multiplier-floor"} & set(names)  # given, or idle with a budget


def typed(*words):
    presets.check_effects(typed_options(words))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OF_MODE)
def test_an_option_of_other_modes_is_refused_and_one_of_this_mode_is_taken(name, mode):
    words = ["--sd-mode", mode, f"{presets.flag(name)}=0.5"]
    if mode in OF_MODE[name]:
        typed(*words)
    else:
        with pytest.raises(InputError, match=presets.flag(name)):
            typed(*words)


@pytest.mark.parametrize("name", presets._BELONGS_TO)
def test_an_option_without_the_one_that_it_belongs_to_is_refused(name):
    owner, values = presets._BELONGS_TO[name]
    other = {"sd_policy": "dense", "sd_estimator": "reinmax"}[owner]
    with pytest.raises(InputError, match=presets.flag(name)):
        typed(presets.flag(owner), other, presets.flag(name), "1")
    for value in values:
        typed(presets.flag(owner), value, presets.flag(name), "1")


@pytest.mark.parametrize(
    "words, needle",
    [
        (["--sd-tolerance", "0.1", "--sd-flops-budget", "0.6"], "give one of them"),
        (["--sd-preset", "best"], "--sd-preset 'best'"),
        (["--sd-path", "dense"], "--sd-policy"),
        (["--sd-fixed-weight", "1"], "--sd-mode budget"),
    ],
)
def test_a_contradiction_is_named(words, needle):
    with pytest.raises(InputError, match=needle):
        typed(*words)


def test_the_presets_own_values_are_never_refused():
    leave_one_out = ["--sd-preset", "paper", "--sd-samples", "3", "--sd-estimator", "leave-one-out"]
    for words in ([], ["--sd-tolerance", "0.1"], leave_one_out):
        typed(*words)
        assert presets.idle_options(typed_options(words)) == {}


def test_a_command_line_of_hydras_tells_the_updates():
    assert presets.hydra_updates(["fairseq-hydra-train", "optimization.max_update=40", "x=1"]) == 40
    assert presets.hydra_updates(["fairseq-hydra-train", "optimization.max_update=${n}"]) == 0
