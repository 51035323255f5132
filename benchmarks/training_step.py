#!/usr/bin/env python3
"""Time and peak memory of a training update: the policy criterion at the paper's skip rates against plain BART.

Both go through fairseq's task, criterion and Adam on the same batch. The policy is set to skip at the paper's rates
almost surely, as a trained one does, and goes on learning; nothing else differs from a real update. The dense peer is
fairseq's ``bart_*`` with label-smoothed cross-entropy.

    python benchmarks/training_step.py --size base --batch-size 4
"""

import argparse
import json
import resource
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, Callable, Dict, List

import measure
import torch
from fairseq.data.language_pair_dataset import collate
from fairseq.optim.adam import FairseqAdam

from sd_fairseq.plugin.tasks.switchable_translation import SwitchableTranslationConfig, SwitchableTranslationTask

CONFIDENCE = 4.0  # logit of a decision that is almost sure


def build_update(kind: str, args: argparse.Namespace) -> Callable[[], None]:
    """Returns what makes one update of ``dense`` or ``ours``."""
    dictionary = measure.build_dictionary()
    task = SwitchableTranslationTask(SwitchableTranslationConfig(), dictionary, dictionary)
    if kind == "dense":
        model = measure.build_model("bart_base", dictionary, args.size)
        settings = {"criterion": "label_smoothed_cross_entropy", "label_smoothing": 0.1, "sentence_avg": False}
    else:
        model = measure.build_model("switchable_bart_base", dictionary, args.size)
        settings = {"criterion": "sd_policy_criterion", "label_smoothing": 0.1, "sentence_avg": False}
        settings["sd_constraint_interval"] = args.constraint_interval
        decide_at_paper_rates(model)
    model.to(args.device)
    criterion = task.build_criterion(argparse.Namespace(**settings)).to(args.device)
    optimizer = build_optimizer(model)
    sample = build_batch(dictionary, args)
    state = SimpleNamespace(update=0)

    def update() -> None:
        model.train()
        criterion.train()
        task.train_step(sample, model, criterion, optimizer, state.update)
        optimizer.multiply_grads(1.0 / sample["ntokens"])
        task.optimizer_step(optimizer, model, state.update)
        optimizer.zero_grad()
        state.update += 1

    return update


def build_optimizer(model: torch.nn.Module) -> FairseqAdam:
    """fairseq's Adam with the recipe's learning rate."""
    settings = {"lr": [3e-5], "adam_betas": "(0.9, 0.999)", "adam_eps": 1e-8, "weight_decay": 0.01}
    settings.update(use_old_adam=True, fp16_adam_stats=False, tpu=False)
    return FairseqAdam(argparse.Namespace(**settings), [one for one in model.parameters() if one.requires_grad])


def decide_at_paper_rates(model: torch.nn.Module) -> None:
    """Sets the policy's last biases so that its mode, and nearly every sample, skips at the paper's rates."""
    decisions = measure.decisions_at(model.space, 1, **measure.PAPER_RATES)
    keep = model.space.to_keep(decisions)[0]  # [num_switches]
    biases = [value for name, value in model.encoder.policy.named_parameters() if name.endswith("heads.bias")]
    weights = [value for name, value in model.encoder.policy.named_parameters() if name.endswith("heads.weight")]
    token = torch.full((len(model.space.token_strategies),), -CONFIDENCE)
    token[int(decisions.token_choice)] = CONFIDENCE
    with torch.no_grad():
        weights[0].mul_(0.01)
        biases[0].copy_(torch.cat([torch.where(keep, CONFIDENCE, -CONFIDENCE), token]))


def build_batch(dictionary: Any, args: argparse.Namespace) -> Dict[str, Any]:
    """Random pairs of the given lengths."""
    generator = torch.Generator().manual_seed(1)

    def sentence(length: int) -> torch.Tensor:
        words = torch.randint(4, len(dictionary), (length - 1,), generator=generator)
        return torch.cat([words, torch.tensor([dictionary.eos()])])

    pairs = [
        {"id": index, "source": sentence(args.source_length), "target": sentence(args.target_length)}
        for index in range(args.batch_size)
    ]
    sample = collate(pairs, dictionary.pad(), dictionary.eos())
    sample["net_input"] = {name: value.to(args.device) for name, value in sample["net_input"].items()}
    sample["target"], sample["id"] = sample["target"].to(args.device), sample["id"].to(args.device)
    return sample


def peak_memory(kind: str, arguments: List[str]) -> float:
    """Peak memory of some updates in a process of their own, in GB."""
    command = [sys.executable, __file__, "--memory-of", kind, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, universal_newlines=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_gb"])


def measure_memory(kind: str, args: argparse.Namespace) -> None:
    """Prints the peak memory of this process after some updates."""
    update = build_update(kind, args)
    for _ in range(4):  # two of them measure the constraint
        update()
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = peak_resident_memory()
    print(json.dumps({"peak_gb": round(peak, 4)}))


def peak_resident_memory() -> float:
    """This process's own peak in GB; getrusage's would be at least that of the process that started this one."""
    try:
        with open("/proc/self/status", encoding="utf-8") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measures and writes ``training_step.json``."""
    parser = measure.arguments(__doc__.splitlines()[0], "training_step")
    parser.set_defaults(size="base")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--source-length", type=int, default=512)
    parser.add_argument("--target-length", type=int, default=64)
    parser.add_argument(
        "--constraint-interval", type=int, choices=(1, 2, 4), default=2, help="--sd-constraint-interval"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory-of", choices=("dense", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        measure_memory(args.memory_of, args)
        return
    shape = {"size": args.size, "batch": args.batch_size, "source": args.source_length, "target": args.target_length}
    shape["constraint_interval"] = args.constraint_interval
    # The constraint is measured every few updates: a turn is as many updates as its period, so that turns are alike.
    updates = {kind: build_update(kind, args) for kind in ("dense", "ours")}
    turns = {kind: (lambda update=update: [update() for _ in range(4)]) for kind, update in updates.items()}
    seconds = measure.take_turns(turns, args.rounds, updates)
    per_update = {kind: [value / 4 for value in values] for kind, values in seconds.items()}
    rows = [measure.row("training-step-time", per_update["ours"], "fairseq bart", per_update["dense"], **shape)]
    measure.write(args.output, rows)
    del updates, turns
    passed = sys.argv[1:]
    gigabytes = {kind: [peak_memory(kind, passed)] for kind in ("dense", "ours")}
    row = measure.row("training-step-memory", gigabytes["ours"], "fairseq bart", gigabytes["dense"], **shape)
    rows.append({**row, "unit": "GB", "ours_gb": gigabytes["ours"][0], "peer_gb": gigabytes["dense"][0]})
    measure.write(args.output, rows)


if __name__ == "__main__":
    main()
