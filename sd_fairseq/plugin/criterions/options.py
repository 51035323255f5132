"""The options of ``--criterion sd_policy_criterion``, and the refusal of those out of their range."""

import math
from dataclasses import dataclass, field
from typing import Any, List, Optional, Tuple

from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.dataclass import ChoiceEnum

from sd_fairseq.learning.lexicographic import MODES, MultiplierRule
from sd_fairseq.plugin.criterions.corpus_flops import FLOPS_AVERAGES
from sd_fairseq.plugin.criterions.estimators import ESTIMATORS
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.presets import PRESETS


def option(default: Any, help_text: str) -> Any:
    """Declares a field of a fairseq configuration."""
    return field(default=default, metadata={"help": help_text})


@dataclass
class SDPolicyCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """Options of the criterion."""

    sd_preset: ChoiceEnum(list(PRESETS)) = option(  # type: ignore[valid-type]
        "recommended",
        "values of the options marked [recommended | paper] that are not given: recommended (what held on real data; "
        "with --sd-tolerance its values for a bounded loss, after the comma) or paper",
    )
    sd_mode: Optional[ChoiceEnum(list(MODES))] = option(  # type: ignore[valid-type]
        None,
        "how quality and FLOPs are traded: budget (FLOPs are bounded), constrained (the loss is), lexicographic, "
        "barrier, as-printed (the paper's Eq. 7 to the letter) or fixed (Table 8) "
        "[budget, constrained | constrained]",
    )
    sd_flops_budget: Optional[float] = option(
        None, "share of the dense FLOPs that --sd-mode budget aims at, in (0, 1] [0.7 | 0.7]"
    )
    sd_tolerance: Optional[float] = option(
        None, "bound the loss instead: nats per token that it may exceed the dense path's by (constraint c) [- | 0.05]"
    )
    sd_fixed_weight: float = option(1.0, "weight of FLOPs in --sd-mode fixed (paper: 0.2, 1.0, 1.5)")
    sd_alpha: Optional[float] = option(
        None, "rate at which a violation is worked off (phi = alpha * violation) [20, 5 | 20]"
    )
    sd_beta: float = option(1.0, "share of |grad_q|^2 in --sd-mode lexicographic and barrier")
    sd_multiplier_floor: Optional[float] = option(
        None,
        "smallest multiplier where quality is the constraint; where FLOPs are (budget, as-printed) it is 0 [0.3 | 0.3]",
    )
    sd_multiplier_ceiling: Optional[float] = option(None, "largest multiplier [12, 3 | 20]")
    sd_multiplier_norm: ChoiceEnum(["unbiased", "naive"]) = option(  # type: ignore[valid-type]
        "unbiased",
        "norm of the estimated gradient that the multiplier divides by: unbiased (of two halves of the examples) or "
        "naive (its own square, too large by its variance: as the paper's text has it)",
    )
    sd_policy_lr: Optional[float] = option(
        None, "learning rate of the policy (its own Adam; paper: gamma_t) [5e-4 | 2e-4]"
    )
    sd_bound: float = option(0.95, "a of p <- a p + (1 - a)(1 - p) while sampling, in (0.5, 1]")
    sd_constraint_temperature: Optional[float] = option(
        None, "temperature of the policy that the constraint is measured on; 0 = its mode path [0.05 | 0.5]"
    )
    sd_constraint_interval: Optional[int] = option(
        None, "updates between two measurements of the constraint [4, 1 | 4]"
    )
    sd_constraint_confidence: Optional[float] = option(
        None,
        "confidence that the bound on the loss is kept, in [0.5, 1): the violation counts as this quantile of what it "
        "may be, and the learning rate falls later; 0.5 = its average, as in the paper [0.95 | 0.5]",
    )
    sd_violation_smoothing: Optional[float] = option(
        None, "decay of the violation's moving average, in [0, 1); in --sd-mode budget 0 [0, 0.8 | 0.9]"
    )
    sd_flops_definition: ChoiceEnum(["generation", "paper"]) = option(  # type: ignore[valid-type]
        "generation", "FLOPs that are minimised: generation (what decoding executes) or paper (its Table 10)"
    )
    sd_flops_average: ChoiceEnum(list(FLOPS_AVERAGES)) = option(  # type: ignore[valid-type]
        "examples",
        "FLOPs are the mean of the documents' shares of their own dense paths (examples, as in the paper), or all "
        "documents' FLOPs as a share of all their dense paths' (corpus: what time is paid for)",
    )
    sd_flops_window: Optional[int] = option(
        None,
        "documents over which --sd-mode budget measures the FLOPs, under the present policy: the last so many; 0 = "
        "those of the update, right where updates are alike [512 with --sd-flops-average corpus, else 0 | 0]",
    )
    sd_budget_warmup_updates: int = option(
        0, "updates at the start in which the budget falls from 1 to its value in a straight line"
    )
    sd_score_function_flops: bool = option(
        False, "estimate the FLOPs gradient by samples as the paper does (default: exact closed form)"
    )
    sd_estimator: Optional[ChoiceEnum(list(ESTIMATORS))] = option(  # type: ignore[valid-type]
        None,
        "estimate of the quality's gradient: score-function (paper: baseline is the mode path), leave-one-out (of "
        "--sd-samples paths), or gates for the switches, the score function for the token strategy: straight-through "
        "or reinmax, its second-order correction [reinmax | score-function]",
    )
    sd_samples: int = option(4, "paths sampled an example by --sd-estimator leave-one-out")
    sd_distillation: Optional[float] = option(
        None,
        "weight of the teacher's distribution in the backbone's loss, in [0, 1): the rest is the data's [0.9 where "
        "there is a teacher | 0]",
    )
    sd_teacher: Optional[str] = option(
        None,
        "checkpoint of the dense teacher for --sd-distillation, or self: the model's own dense path (default: the "
        "checkpoint of --finetune-from-model)",
    )
    sd_cost_beam: int = option(4, "beam size that the FLOPs of generation are counted for")
    sd_policy_warmup_updates: Optional[int] = option(
        None,
        "updates at the start in which only the policy learns; as many as --sd-policy-freeze-update: the policy first, "
        "then the backbone on its paths [0, all before the freeze | 0]",
    )
    sd_policy_freeze_update: Optional[int] = option(
        None,
        "from this update on the policy is fixed and the backbone trains on the deployed path; 0 = never "
        "[a quarter of --max-update, at least 300 | 0]",
    )
    sd_track_budget: Optional[ChoiceEnum(["yes", "no"])] = option(  # type: ignore[valid-type]
        None,
        "once the policy is fixed, in --sd-mode budget, a shift of its logits follows what the deployed paths cost, so "
        "that the budget is met; yes by default with --sd-budget-range [no | no]",
    )
    sd_settle_share: float = option(
        0.5,
        "last share of the updates before --sd-policy-freeze-update in which the policy settles: the constraint's "
        "temperature and the policy's learning rate fall to 0; 0 = neither falls",
    )
    sd_sampling_seed: int = option(1, "seed of the sampled paths")


def multiplier_rule(cfg: SDPolicyCriterionConfig) -> MultiplierRule:
    """Builds the rule that finds the multiplier.

    Raises:
        InputError: limits out of order.
    """
    try:
        return MultiplierRule(
            mode=str(cfg.sd_mode),
            alpha=cfg.sd_alpha,
            beta=cfg.sd_beta,
            floor=cfg.sd_multiplier_floor,
            ceiling=cfg.sd_multiplier_ceiling,
            fixed_weight=cfg.sd_fixed_weight,
            confidence=cfg.sd_constraint_confidence,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def check_options(cfg: SDPolicyCriterionConfig) -> None:
    """Refuses options out of their range.

    Raises:
        InputError: naming the option, what was found and what is expected.
    """
    checks: List[Tuple[str, bool, str]] = [
        ("sd_tolerance", 0 <= cfg.sd_tolerance < math.inf, "0 or more (nats per token)"),
        ("sd_flops_budget", 0 < cfg.sd_flops_budget <= 1, "in (0, 1]"),
        ("sd_flops_window", (cfg.sd_flops_window or 0) >= 0, "0 or more (documents)"),
        ("sd_budget_warmup_updates", cfg.sd_budget_warmup_updates >= 0, "0 or more"),
        ("sd_bound", 0.5 < cfg.sd_bound <= 1, "in (0.5, 1]"),
        ("sd_constraint_temperature", 0 <= cfg.sd_constraint_temperature <= 1, "in 0..1"),
        ("sd_constraint_interval", cfg.sd_constraint_interval >= 1, "1 or more"),
        ("sd_violation_smoothing", 0 <= (cfg.sd_violation_smoothing or 0) < 1, "in [0, 1)"),
        ("sd_policy_lr", cfg.sd_policy_lr > 0 and math.isfinite(cfg.sd_policy_lr), "positive"),
        ("sd_samples", cfg.sd_samples >= 2, "2 or more"),
        ("sd_distillation", 0 <= cfg.sd_distillation < 1, "in [0, 1)"),
        ("sd_cost_beam", cfg.sd_cost_beam >= 1, "1 or more"),
        ("sd_policy_warmup_updates", cfg.sd_policy_warmup_updates >= 0, "0 or more"),
        ("sd_policy_freeze_update", cfg.sd_policy_freeze_update >= 0, "0 or more"),
        ("sd_settle_share", 0 <= cfg.sd_settle_share <= 1, "in 0..1"),
    ]
    wrong: Optional[Tuple[str, bool, str]] = next((check for check in checks if not check[1]), None)
    if wrong is not None:
        flag = "--" + wrong[0].replace("_", "-")
        raise InputError(f"{flag} {getattr(cfg, wrong[0])} is not {wrong[2]}")
    if cfg.report_accuracy or cfg.ignore_prefix_size:
        raise InputError("--report-accuracy and --ignore-prefix-size do not apply to --criterion sd_policy_criterion")
    if cfg.sd_teacher and not cfg.sd_distillation:
        raise InputError("--sd-teacher needs --sd-distillation, the weight of the teacher in the loss")
    if str(cfg.sd_track_budget) == "yes" and not cfg.sd_policy_freeze_update:
        raise InputError("--sd-track-budget yes needs --sd-policy-freeze-update: it acts once the policy is fixed")
    if 0 < cfg.sd_policy_freeze_update < cfg.sd_policy_warmup_updates:
        raise InputError(
            f"--sd-policy-freeze-update {cfg.sd_policy_freeze_update} is before the end of "
            f"--sd-policy-warmup-updates {cfg.sd_policy_warmup_updates}: nothing would be trained in between"
        )
