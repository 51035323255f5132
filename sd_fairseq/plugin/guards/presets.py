"""``--sd-preset``: one set of values for model and criterion, and what each option needs to have an effect.

Choice: ``recommended`` is what held on Debian descriptions, three seeds (docs/results.md): a budget of FLOPs that
policy and backbone learn together, reinmax, distillation from the checkpoint that training starts from. With
``--sd-tolerance`` the loss is the constraint instead, and the policy learns first, alone: against a backbone that
trains on, the constraint would compare with a dense path that moves. ``paper`` is the paper's where it says a value.
An option that is given wins over either; options of old checkpoints are given, too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence

from sd_fairseq.plugin.guards.errors import InputError

PRESETS = ("recommended", "paper")
POLICY_SHARE = 0.25  # of --max-update, before the policy is frozen
LEAST_POLICY_UPDATES = 300  # learned policies settled within these, whatever came after
RANGE_FACTOR = 2  # a policy for a range of budgets learns for so many times as long
FLOPS_WINDOW = 512  # documents; where FLOPs are the corpus's, batches of one kind of document must not stand for it
SELF_TEACHER = "self"  # the model's own dense path

_PAPER = {
    "sd_mode": "constrained",
    "sd_tolerance": 0.05,
    "sd_flops_budget": 0.7,
    "sd_alpha": 20.0,
    "sd_multiplier_floor": 0.3,
    "sd_multiplier_ceiling": 20.0,
    "sd_policy_lr": 2e-4,
    "sd_constraint_temperature": 0.5,
    "sd_constraint_interval": 4,
    "sd_constraint_confidence": 0.5,
    "sd_estimator": "score-function",
    "sd_distillation": 0.0,
    "sd_policy_warmup_updates": 0,
    "sd_policy_freeze_update": 0,
    "sd_track_budget": "no",
    "sd_flops_window": 0,
}
_RECOMMENDED = {
    **_PAPER,
    "sd_policy_lr": 5e-4,
    "sd_constraint_temperature": 0.05,
    "sd_estimator": "reinmax",
}
_BUDGET = {"sd_multiplier_ceiling": 12.0}
# of a small batch the violation of a loss is mostly noise: slow down what answers to it
_CONSTRAINED = {
    "sd_alpha": 5.0,
    "sd_multiplier_ceiling": 3.0,
    "sd_constraint_interval": 1,
    "sd_constraint_confidence": 0.95,
}
_DISTILLATION = 0.9
MODEL_VALUES = {
    "recommended": {"sd_space": "encoder,decoder", "sd_initial_keep": 0.85},
    "paper": {"sd_space": "encoder,decoder,token", "sd_initial_keep": 0.95},
}

# option -> modes in which it has an effect
_MODES_OF = {
    "sd_flops_budget": ("budget",),
    "sd_budget_range": ("budget",),
    "sd_track_budget": ("budget",),
    "sd_flops_window": ("budget",),
    "sd_budget_warmup_updates": ("budget",),
    "sd_tolerance": ("constrained", "barrier", "as-printed"),
    "sd_fixed_weight": ("fixed",),
    "sd_beta": ("lexicographic", "barrier"),
    "sd_alpha": ("constrained", "barrier", "budget", "as-printed"),
    "sd_multiplier_floor": ("constrained", "lexicographic", "barrier"),
    "sd_multiplier_ceiling": ("constrained", "lexicographic", "barrier", "budget", "as-printed"),
    "sd_constraint_interval": ("constrained", "lexicographic", "barrier", "as-printed"),
    "sd_constraint_temperature": ("constrained", "lexicographic", "barrier", "budget", "as-printed"),
    "sd_constraint_confidence": ("constrained", "barrier"),
    "sd_violation_smoothing": ("constrained", "barrier", "budget", "as-printed"),
}
# option -> the option that it belongs to, and that one's values
_BELONGS_TO = {
    "sd_samples": ("sd_estimator", ("leave-one-out",)),
    "sd_budget_range": ("sd_policy", ("network",)),
    "sd_track_budget": ("sd_policy", ("network", "layerwise")),
    "sd_flops_window": ("sd_policy", ("network",)),
    "sd_random_keep": ("sd_policy", ("random",)),
    "sd_random_seed": ("sd_policy", ("random",)),
    "sd_static_path": ("sd_policy", ("static",)),
    "sd_initial_keep": ("sd_policy", ("network", "layerwise")),
    "sd_initial_path": ("sd_policy", ("network", "layerwise")),
    "sd_policy_hidden_size": ("sd_policy", ("network", "layerwise")),
    "sd_policy_input": ("sd_policy", ("network", "layerwise")),
}


@dataclass(frozen=True)
class Run:
    """What a preset needs to know of the command.

    Args:
        max_update: of the training; 0 = unknown or unlimited.
        base: checkpoint that training starts from (``--finetune-from-model``), or None.
        policy: ``--sd-policy``.
        trains: False = the command only evaluates.
        serves_range: the policy is for a range of budgets.
    """

    max_update: int = 0
    base: Optional[str] = None
    policy: str = "network"
    trains: bool = True
    serves_range: bool = False

    @classmethod
    def of(cls, options: Any) -> "Run":
        """Reads it off the options of a command or a model."""
        return cls(
            int(getattr(options, "max_update", 0) or 0) or hydra_updates(sys.argv),
            getattr(options, "finetune_from_model", None) or None,
            getattr(options, "sd_policy", None) or "network",
            serves_range=bool(getattr(options, "sd_budget_range", None)),
        )

    @property
    def learns(self) -> bool:
        """True where there is a policy to learn."""
        return self.trains and self.policy in ("network", "layerwise")


def hydra_updates(argv: Sequence[str]) -> int:
    """Returns the ``optimization.max_update`` on a command line of fairseq-hydra-train, or 0."""
    found = [word.partition("=")[2] for word in argv if word.startswith("optimization.max_update=")]
    return int(found[-1]) if found and found[-1].isdigit() else 0


def mode_of(preset: str, given: Mapping[str, Any]) -> str:
    """Returns the mode that the given options mean under a preset."""
    if given.get("sd_mode") is not None:
        return str(given["sd_mode"])
    if preset == "recommended":
        return "budget" if given.get("sd_tolerance") is None else "constrained"
    return str(_PAPER["sd_mode"])


def criterion_values(preset: str, given: Mapping[str, Any], run: Run) -> Dict[str, Any]:
    """Returns a value for every option of the criterion that a preset sets.

    Args:
        preset: one of :data:`PRESETS`.
        given: the options; None = not given.
        run: the command's.

    Raises:
        InputError: an unknown preset, or a training of unknown length for a preset that shares it out.
    """
    check_preset(preset)
    mode = mode_of(preset, given)
    values: Dict[str, Any] = dict(_PAPER)
    if preset == "recommended":
        values = {**_RECOMMENDED, **(_BUDGET if mode == "budget" else _CONSTRAINED)}
        values.update(sd_distillation=_DISTILLATION if teacher_of(given, run) else 0.0)
        if run.policy == "layerwise":
            values["sd_estimator"] = "score-function"  # its gates would be opened too late
        if mode == "budget" and run.policy == "network" and str(given.get("sd_flops_average")) == "corpus":
            values["sd_flops_window"] = FLOPS_WINDOW
        if run.learns:
            freeze = given.get("sd_policy_freeze_update")
            freeze = policy_updates(run) if freeze is None else freeze
            values["sd_policy_freeze_update"] = freeze
            values["sd_policy_warmup_updates"] = 0 if mode == "budget" else freeze
            # of one budget it is met without, and only that has been measured on three seeds
            values["sd_track_budget"] = "yes" if freeze and run.serves_range else "no"
    values["sd_mode"] = mode
    if given_or(values, given, "sd_distillation"):
        values["sd_teacher"] = teacher_of(given, run)
        if values["sd_teacher"] is None:
            raise InputError(f"--sd-distillation needs --sd-teacher: a checkpoint, or {SELF_TEACHER}")
    # E[FLOPs] is a closed form with little noise: looking back makes FLOPs swing about the budget
    smooth = 0.9 if preset == "paper" else 0.8
    values["sd_violation_smoothing"] = 0.0 if mode == "budget" else smooth
    return values


def given_or(values: Mapping[str, Any], given: Mapping[str, Any], name: str) -> Any:
    """Returns the given value of an option, or the preset's."""
    return values.get(name) if given.get(name) is None else given[name]


def teacher_of(given: Mapping[str, Any], run: Run) -> Optional[str]:
    """Returns the teacher: the one that is given, or the checkpoint that training starts from."""
    return given.get("sd_teacher") or run.base


def policy_updates(run: Run) -> int:
    """Returns the update at which the policy is frozen.

    Raises:
        InputError: the length of the training is not known.
    """
    if not run.max_update:
        raise InputError(
            f"--sd-preset recommended freezes the policy after {POLICY_SHARE:g} of --max-update, found none; give "
            "--max-update, or --sd-policy-freeze-update"
        )
    factor = RANGE_FACTOR if run.serves_range else 1
    return factor * max(LEAST_POLICY_UPDATES, int(run.max_update * POLICY_SHARE))


def check_preset(name: Any) -> None:
    """Refuses an unknown preset.

    Raises:
        InputError: naming it.
    """
    if name not in PRESETS:
        raise InputError(f"--sd-preset {name!r} is not one of {', '.join(PRESETS)}")


def fill_criterion(cfg: Any, run: Run) -> List[str]:
    """Gives every option that is not given (None) its value under the preset, in place.

    Returns:
        What was filled in and has an effect, as ``name value``, in the order of the options.
    """
    preset = str(getattr(cfg, "sd_preset", None) or PRESETS[0])
    names = [*_PAPER, "sd_teacher", "sd_violation_smoothing", "sd_flops_average"]
    given = {name: getattr(cfg, name, None) for name in names}
    if all(given[name] is not None for name in _PAPER):
        return []
    filled = []
    for name, value in criterion_values(preset, given, run).items():
        if given[name] is None and value is not None:
            setattr(cfg, name, value)
            if str(cfg.sd_mode) in _MODES_OF.get(name, (str(cfg.sd_mode),)):
                filled.append(f"{name[3:].replace('_', '-')} {value}")
    return filled


def check_effects(given: Mapping[str, Any]) -> None:
    """Refuses options that would have no effect.

    Args:
        given: the options of a training that stand on its command line, by name.

    Raises:
        InputError: naming the first such option and what it needs.
    """
    preset = given.get("sd_preset") or PRESETS[0]
    check_preset(preset)
    if given.get("sd_path") is not None:
        raise InputError("--sd-path chooses among the paths of a trained model; in training it is --sd-policy")
    if given.get("sd_flops_budget") is not None and given.get("sd_tolerance") is not None:
        raise InputError("--sd-flops-budget bounds the FLOPs and --sd-tolerance the loss: give one of them")
    for message in idle_options(given).values():
        raise InputError(message)


def idle_options(given: Mapping[str, Any]) -> Dict[str, str]:
    """Finds the options that have no effect: name -> what they need.

    Args:
        given: as :func:`check_effects` takes it.
    """
    preset = given.get("sd_preset") or PRESETS[0]
    mode = mode_of(preset, given)
    estimator = given.get("sd_estimator") or ("score-function" if preset == "paper" else "reinmax")
    found = {"sd_policy": given.get("sd_policy") or "network", "sd_estimator": estimator}
    idle = {}
    for name, modes in _MODES_OF.items():
        if given.get(name) is not None and mode not in modes:
            idle[name] = f"{flag(name)} has no effect in --sd-mode {mode}; it needs --sd-mode {' or '.join(modes)}"
    for name, (owner, values) in _BELONGS_TO.items():
        if given.get(name) is not None and found[owner] not in values:
            needed = f"{flag(owner)} {' or '.join(values)}"
            idle[name] = f"{flag(name)} has no effect with {flag(owner)} {found[owner]}; it needs {needed}"
    return idle


def flag(name: str) -> str:
    """Returns an option as it is typed."""
    return "--" + name.replace("_", "-")


def options_with_conditions() -> List[str]:
    """Lists the options that :func:`check_effects` knows."""
    return list(dict.fromkeys([*_MODES_OF, *_BELONGS_TO]))
