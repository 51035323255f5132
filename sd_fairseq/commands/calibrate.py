"""``sd-calibrate``: the cheapest setting of a policy whose loss stays below a bound, with confidence."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any, Dict, Optional, Sequence

from sd_fairseq.commands.shared import add_batches, add_model, add_sample, make_parser, run

ABOUT = """Finds how little a trained policy may run so that its mean loss against a dense path is at most --max-loss,
with the stated confidence (Learn then Test, Angelopoulos et al. 2021). The dense path is that of --reference, such as
the model that training started from: that of the same weights has often been left behind by training on other paths.

Of a policy for a range of budgets (--sd-budget-range) the budget is chosen, of any other a shift of its logits. The
pairs must be as the ones to come are, and must neither have trained the model nor chosen it: take a split of their
own. --output is a copy of the checkpoint that decides so by itself, wherever it is used."""
LARGEST = {"nats": None, "rouge": 100.0}
UNITS = {"nats": "nats a token", "rouge": "ROUGE-L points"}


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    example = "sd-calibrate DATA --path checkpoint_best.pt --gen-subset test --max-loss 0.05 --output calibrated.pt"
    parser = make_parser("sd-calibrate", ABOUT, example)
    add = parser.add_argument
    add_model(parser, None)
    add("--reference", metavar="CHECKPOINT", help="model whose dense path is compared with (default: the same weights)")
    add("--max-loss", type=float, required=True, help="largest mean loss: nats a token, or ROUGE-L points (0-100)")
    add("--confidence", type=float, default=0.95, help="default: %(default)s")
    add("--risk", choices=tuple(UNITS), default="nats", help="nats (teacher-forced) or rouge (default: %(default)s)")
    text = "t, or hoeffding-bentkus, which holds for any number of pairs, of --risk rouge only (default: %(default)s)"
    add("--test", choices=("t", "hoeffding-bentkus"), default="t", help=text)
    add_sample(parser, 0)
    add_batches(parser)
    add("--check-subset", metavar="SPLIT", help="another split, on which the chosen setting's loss is measured")
    add("--output", metavar="CHECKPOINT", help="copy of the checkpoint that is set so")
    add("--report", metavar="FILE", help="every setting's loss, FLOPs and p-value, JSON")
    add("--lenpen", type=float, default=1.0, help="as fairseq-generate's, of --risk rouge, as the next three")
    add("--max-len-a", type=float, default=0.0, help="default: %(default)s")
    add("--max-len-b", type=int, default=200, help="default: %(default)s")
    add("--no-repeat-ngram-size", type=int, default=0, help="default: %(default)s")
    add("--post-process", help="as fairseq-generate's, such as sentencepiece")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Refuses options out of their range.

    Raises:
        ValueError: naming one.
    """
    from sd_fairseq.whole_files import check_places

    if not 0 < args.max_loss < math.inf:
        raise ValueError(f"--max-loss {args.max_loss} is not positive ({UNITS[args.risk]})")
    if args.risk == "rouge" and args.max_loss >= 100:
        raise ValueError(f"--max-loss {args.max_loss:g} allows every loss: ROUGE-L has 100 points")
    if not args.gen_subset:
        raise ValueError("--gen-subset: found none, expected a split that neither trained nor chose the checkpoint")
    if args.check_subset == args.gen_subset:
        raise ValueError(f"--check-subset {args.check_subset} is the split that is calibrated on, expected another")
    if args.output and "sd_" in args.model_overrides:
        raise ValueError("--output with --model-overrides of sd_ options: the copy would decide without them")
    if not 0 < args.confidence < 1:
        raise ValueError(f"--confidence {args.confidence} is not in (0, 1)")
    if args.test == "hoeffding-bentkus" and args.risk != "rouge":
        raise ValueError("--test hoeffding-bentkus needs a bounded loss, --risk rouge; found --risk nats")
    check_places([args.output, args.report], [args.path, args.reference])


def work(args: argparse.Namespace) -> None:
    """Calibrates, writes and prints.

    Raises:
        ValueError: no setting keeps the bound; the report is written all the same.
    """
    from sd_fairseq.plugin.guards.checkpoint_structure import has_policy
    from sd_fairseq.plugin.guards.preflight import check_checkpoint
    from sd_fairseq.study import calibration
    from sd_fairseq.study.path_scorer import load
    from sd_fairseq.whole_files import write_json

    check_options(args)
    check_checkpoint(args.path, "--path")
    if not has_policy(args.path):
        raise ValueError(f"--path {args.path}: holds no policy, expected a checkpoint of a trained one")
    scorer = load(args)
    policy = scorer.model.encoder.policy
    name, values = calibration.tuned_buffer(policy)
    risk = build_risk(scorer, args, args.gen_subset)
    measured = [calibration.measure_all(policy, name, sequence, risk) for sequence in values]
    chosen, p_values = calibration.choose(measured, args.max_loss, args.confidence, args.test, LARGEST[args.risk])
    report = describe(args, name, measured, p_values, chosen)
    if chosen is not None and args.check_subset:
        other = load(argparse.Namespace(**{**vars(args), "gen_subset": args.check_subset, "examples": 0}))
        (again,) = calibration.measure_all(
            other.model.encoder.policy, name, [chosen.value], build_risk(other, args, args.check_subset)
        )
        report["check"] = {"subset": args.check_subset, **figures(again)}
    if args.report:
        write_json(args.report, report)
    show(report)
    if chosen is None:
        limit = f"{args.max_loss:g} {UNITS[args.risk]}"
        raise ValueError(f"no {name} is shown to lose at most {limit}: nothing is calibrated")
    if args.output:
        calibration.write_calibrated(args.path, args.output, name, chosen.value, report)


def build_risk(scorer: Any, args: argparse.Namespace, subset: str) -> Any:
    """Returns what measures the loss that is bounded, on a split."""
    from sd_fairseq.study.calibration import NatsRisk, RougeRisk
    from sd_fairseq.study.path_scorer import load

    reference = None
    if args.reference:
        examples = args.examples if subset == args.gen_subset else 0
        changes = {"path": args.reference, "model_overrides": "{}", "gen_subset": subset, "examples": examples}
        reference = load(argparse.Namespace(**{**vars(args), **changes}))
    return NatsRisk(scorer, reference) if args.risk == "nats" else RougeRisk(scorer, args, reference)


def figures(one: Any) -> Dict[str, Any]:
    """Returns a setting's mean loss with its 95 % interval, FLOPs and number of pairs."""
    import torch

    from sd_fairseq.study.path_search import interval

    mean = interval(torch.as_tensor(one.losses))
    return {"pairs": len(one.losses), "flops_generation": one.flops, "loss": mean}


def describe(
    args: argparse.Namespace, name: str, measured: Any, p_values: Any, chosen: Optional[Any]
) -> Dict[str, Any]:
    """Collects what the report says."""
    settings = [
        {name: one.value, "sequence": number, **figures(one), "p": p}
        for number, (sequence, values) in enumerate(zip(measured, p_values), start=1)
        for one, p in zip(sequence, values)
    ]
    return {
        "tuned": name,
        "chosen": None if chosen is None else chosen.value,
        "flops_generation": None if chosen is None else chosen.flops,
        "risk": args.risk,
        "max_loss": args.max_loss,
        "confidence": args.confidence,
        "test": args.test,
        "subset": args.gen_subset,
        "against": "the dense path of " + ("the reference" if args.reference else "the same weights"),
        "settings": settings,
    }


def show(report: Dict[str, Any]) -> None:
    """Prints the settings as a table, and the chosen one."""
    from tabulate import tabulate

    from sd_fairseq.study.path_search import show as show_value

    name = report["tuned"]
    rows = [
        (
            str(one["sequence"]),
            f"{one[name]:.3f}",
            f"{one['flops_generation']:.3f}",
            show_value(one["loss"]),
            f"{one['p']:.2g}",
        )
        for one in report["settings"]
    ]
    print(tabulate(rows, headers=("", name, "FLOPs", f"loss, {UNITS[report['risk']]}", "p"), disable_numparse=True))
    if report["chosen"] is not None:
        sure = f"{100 * report['confidence']:g} % confidence"
        limit = f"at most {report['max_loss']:g} {UNITS[report['risk']]} are lost"
        print(f"{name} {report['chosen']:.3f}: {report['flops_generation']:.3f} of the FLOPs; {limit}, with {sure}")
    if "check" in report:
        check = report["check"]
        print(f"on {check['subset']}: {show_value(check['loss'])} at {check['flops_generation']:.3f} of the FLOPs")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
