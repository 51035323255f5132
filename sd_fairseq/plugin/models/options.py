"""The ``--sd-*`` options of the model: what may be skipped, and who decides."""

from __future__ import annotations

import argparse
from typing import Any, Optional

from torch import nn

from sd_fairseq.cost.path_flops import ModelShape
from sd_fairseq.decision.budgets import KNOTS, BudgetRange
from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.given_policies import RandomPolicy, StaticPolicy
from sd_fairseq.decision.layerwise_policy import LayerwisePolicyNetwork
from sd_fairseq.decision.policy import INPUTS, PolicyNetwork, input_width
from sd_fairseq.decision.rule_notation import build_rule
from sd_fairseq.decision.rules import DecisionRule
from sd_fairseq.decision.token_strategies import DEFAULT_TOKEN_STRATEGIES
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.presets import MODEL_VALUES, check_preset
from sd_fairseq.plugin.models.fixed_path import NOTATION, parse_path, path_decisions

POLICIES = ("network", "layerwise", "random", "static", "dense")
DEFAULTS = {  # and MODEL_VALUES of the preset
    "sd_first_encoder_layer": 2,
    "sd_first_decoder_layer": 1,
    "sd_always_run_attention": -1,
    "sd_cross_attention_apart": False,
    "sd_policy": "network",
    "sd_policy_hidden_size": 0,
    "sd_policy_input": "state",
    "sd_budget_range": "",
    "sd_initial_path": "",
    "sd_random_keep": 0.7,
    "sd_random_seed": 1,
    "sd_static_path": "",
    "sd_skip_keeps_layer_norm": False,
    "sd_protect_end": 0,
}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the model's options; defaults stand in :data:`DEFAULTS`, as fairseq's architectures need it."""
    add = parser.add_argument
    add(
        "--sd-space",
        metavar="PARTS",
        help="switchable parts, comma-separated: encoder,decoder,token (the paper's Table 7 takes one at a time) "
        "[encoder,decoder | encoder,decoder,token]",
    )
    add("--sd-first-encoder-layer", type=int, metavar="L", help="first switchable encoder layer, from 2 (paper: 2)")
    add("--sd-first-decoder-layer", type=int, metavar="L", help="first switchable decoder layer, from 1 (paper: 1)")
    add(
        "--sd-always-run-attention",
        type=int,
        metavar="L",
        help="decoder layer whose attention always runs, from 1; -1 = the last",
    )
    add(
        "--sd-cross-attention-apart",
        action="store_true",
        help="decide decoder cross-attention apart from self-attention (paper: together)",
    )
    add(
        "--sd-policy",
        choices=POLICIES,
        help="who decides: network (paper), layerwise (Table 11), random (Table 8), static (one path for "
        "every input) or dense (nothing is skipped)",
    )
    add("--sd-policy-hidden-size", type=int, metavar="N", help="hidden units of the policy; 0 = embedding dimension")
    add(
        "--sd-policy-input",
        choices=INPUTS,
        help="what the policy reads: state (paper: the mean of encoder layer 1's output), state+length (the number of "
        "source tokens, too), or a control: length (none of the text) or nothing (one learned path for all)",
    )
    add(
        "--sd-budget-range",
        metavar="LOW,HIGH",
        help="train one policy for every FLOPs budget from LOW to HIGH, such as 0.5,0.8; which one a generation has is "
        "its --sd-flops-budget",
    )
    text = "keep-probability of a fresh policy, in (0.5, 1) [0.85 | 0.95]"
    add("--sd-initial-keep", type=float, metavar="P", help=text)
    add(
        "--sd-initial-path",
        metavar="PATH",
        help="mode path of a fresh policy, with --sd-initial-keep as the probability of each of its decisions; same "
        "notation as --sd-static-path (default: nothing is skipped)",
    )
    add("--sd-random-keep", type=float, metavar="P", help="keep-probability of --sd-policy random, 0..1")
    add("--sd-random-seed", type=int, metavar="N", help="seed of --sd-policy random")
    add("--sd-static-path", metavar="PATH", help="path of --sd-policy static, such as " + NOTATION)
    text = "token strategies spare N more of a source's last tokens, such as an instruction or a template's end"
    add("--sd-protect-end", type=int, metavar="N", help=text)
    add(
        "--sd-skip-keeps-layer-norm",
        action="store_true",
        help="a skipped sub-layer still applies its LayerNorm (default: identity)",
    )


def fill_defaults(args: Any) -> None:
    """Gives every option that ``args`` lacks (a plain BART checkpoint, say) its default, or its preset's value.

    Options that name no preset are of another criterion, or older than presets: the paper's values.

    Raises:
        InputError: an unknown preset.
    """
    preset = getattr(args, "sd_preset", None) or "paper"
    check_preset(preset)
    for name, value in {**DEFAULTS, **MODEL_VALUES[preset]}.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    for name, value in (("sd_served_budget", None), ("sd_rule", "")):
        if not hasattr(args, name):  # so that an override of a hydra-trained checkpoint finds it
            setattr(args, name, value)


def decision_space(args: Any, tied: bool = False) -> DecisionSpace:
    """Builds the decision space; ``tied`` where both stacks are the same layers.

    Raises:
        InputError: a contradictory or unknown option.
    """
    strategies: Optional[str] = getattr(args, "sd_token_strategies", None)
    try:
        return DecisionSpace.build(
            encoder_layers=args.encoder_layers,
            decoder_layers=args.decoder_layers,
            parts=[part.strip() for part in args.sd_space.split(",") if part.strip()],
            first_encoder_layer=args.sd_first_encoder_layer,
            first_decoder_layer=args.sd_first_decoder_layer,
            always_run_attention=args.sd_always_run_attention,
            cross_attention_apart=args.sd_cross_attention_apart,
            token_strategies=strategies or DEFAULT_TOKEN_STRATEGIES,
            tied=tied,
            spared=args.sd_protect_end,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def build_policy(args: Any, space: DecisionSpace) -> Optional[nn.Module]:
    """Builds who decides; None = always dense.

    Raises:
        InputError: an impossible option.
    """
    if args.sd_policy == "static":
        path = parse_path(args.sd_static_path or "", space, "--sd-static-path")
        return StaticPolicy(path_decisions(path, space, 1))
    try:
        check_served_budget(args)
        if args.sd_policy == "dense":
            return None
        if args.sd_policy == "random":
            return RandomPolicy(space, args.sd_random_keep, args.sd_random_seed)
        network = {"network": PolicyNetwork, "layerwise": LayerwisePolicyNetwork}.get(args.sd_policy)
        if network is None:
            raise ValueError(f"policy {args.sd_policy!r} is not one of {', '.join(POLICIES)}")
        start = initial_path(args, space)
        about = args.sd_policy_hidden_size, args.sd_initial_keep, start, args.sd_policy_input
        budgets = budget_range(args)
        if budgets is None:
            return network(args.encoder_embed_dim, space, *about)
        if network is not PolicyNetwork:
            raise ValueError(f"--sd-budget-range needs --sd-policy network, found {args.sd_policy}")
        policy = PolicyNetwork(args.encoder_embed_dim, space, *about, budgets)
        policy.budget.fill_(served_budget(args, budgets))
        return policy
    except ValueError as error:
        raise InputError(str(error)) from error


def budget_range(args: Any) -> Optional[BudgetRange]:
    """Returns the budgets that a policy is for; None = it has learned one.

    Raises:
        ValueError: no range.
    """
    text = getattr(args, "sd_budget_range", None)
    return BudgetRange.parse(text) if text else None


def check_served_budget(args: Any) -> None:
    """Refuses a budget that is asked of a model that has only one.

    Raises:
        ValueError: naming it.
    """
    asked = getattr(args, "sd_served_budget", None)
    if asked is not None and (budget_range(args) is None or args.sd_policy != "network"):
        raise ValueError(
            f"--sd-flops-budget {asked:g} needs a policy that was trained with --sd-budget-range; this one has one "
            "budget, the one that it learned"
        )


def served_budget(args: Any, budgets: BudgetRange) -> float:
    """Returns the budget that a model serves: a generation's, else the training's, else the range's default.

    Raises:
        ValueError: one outside the range.
    """
    for name in ("sd_served_budget", "sd_flops_budget"):
        given = getattr(args, name, None)
        if given is not None:
            budgets.check(float(given), "--sd-flops-budget")
            return float(given)
    return budgets.default


def initial_path(args: Any, space: DecisionSpace) -> Optional[Decisions]:
    """Returns the mode path of a fresh policy, None = nothing is skipped.

    Raises:
        InputError: a path that the model cannot take.
    """
    text = args.sd_initial_path
    return path_decisions(parse_path(text, space, "--sd-initial-path"), space, 1) if text else None


def build_decoder_rule(args: Any, space: DecisionSpace, decoder: Any) -> DecisionRule:
    """Builds what decides at every step which decoder layers run (``sd_rule``, from ``--sd-path``).

    Raises:
        InputError: a rule that this decoder cannot have.
    """
    try:
        rule = build_rule(getattr(args, "sd_rule", None) or "", space.decoder_layers)
    except InputError as error:
        raise InputError(f"--sd-path {error}") from error
    if rule.text and space.tied:
        raise InputError(f"--sd-path {rule.text} is for an encoder and a decoder, found a model that is one stack")
    if rule.by_confidence and not getattr(decoder, "can_leave_early", False):
        raise InputError(f"--sd-path {rule.text} is for BART, found {getattr(args, 'arch', type(decoder).__name__)}")
    return rule


def check_supported(args: Any) -> None:
    """Refuses the transformer options that skipping does not support.

    Raises:
        InputError: naming the first such option.
    """
    refused = {
        "encoder_layerdrop": "--encoder-layerdrop drops layers that the policy decides about",
        "decoder_layerdrop": "--decoder-layerdrop drops layers that the policy decides about",
        "cross_self_attention": "--cross-self-attention merges the two attentions of a decoder layer",
        "no_cross_attention": "--no-cross-attention leaves a decoder that cannot see its source",
        "scale_attn": "--scale-attn",
        "scale_heads": "--scale-heads",
        "scale_fc": "--scale-fc",
        "scale_resids": "--scale-resids",
        "base_layers": "--base-layers",
        "adaptive_softmax_cutoff": "--adaptive-softmax-cutoff",
    }
    for name, reason in refused.items():
        if getattr(args, name, None):
            raise InputError(f"switchable_bart does not support {reason} (found {name}={getattr(args, name)!r})")


def model_shape(args: Any, vocabulary: int, policy: Optional[nn.Module]) -> ModelShape:
    """Collects the dimensions that the closed-form costs need."""
    networks = len(getattr(policy, "stages", ()))
    return ModelShape(
        encoder_dim=args.encoder_embed_dim,
        decoder_dim=args.decoder_embed_dim,
        encoder_ffn_dim=args.encoder_ffn_embed_dim,
        decoder_ffn_dim=args.decoder_ffn_embed_dim,
        vocabulary=vocabulary,
        policy_hidden=getattr(args, "sd_policy_hidden_size", 0) or args.encoder_embed_dim,
        policy_networks=networks,
        policy_input=input_width(getattr(args, "sd_policy_input", "state"), args.encoder_embed_dim),
        policy_heads=KNOTS if getattr(args, "sd_budget_range", None) else 1,
    )
