#!/usr/bin/env python3
"""Time and peak memory of a training update: the policy criterion at the paper's skip rates against plain BART.

All go through fairseq's task, criterion and Adam on the same batch. The policy is set to skip at the paper's rates
almost surely, as a trained one does; nothing else differs from a real update. Three of them are ours: ``paper`` (that
preset, the policy learns), ``learning`` and ``deployed`` (the preset ``recommended`` with a teacher, while the policy
learns and once it is fixed). The dense peer is fairseq's ``bart_*`` with label-smoothed cross-entropy. Each has a
process of its own; they take turns.

    python benchmarks/training_step.py --size base --batch-size 4
"""

import argparse
import resource
from types import SimpleNamespace
from typing import Any, Callable, Dict, List

import accelerator
import measure
import torch
import turns
import worker
from fairseq.data.language_pair_dataset import collate
from fairseq.optim.adam import FairseqAdam

from sd_fairseq.plugin.tasks.switchable_translation import SwitchableTranslationConfig, SwitchableTranslationTask

CONFIDENCE = 4.0  # logit of a decision that is almost sure
UPDATES = 4  # a turn; the constraint is measured every 1, 2 or 4 updates
OURS = ("paper", "learning", "deployed")
KINDS = ("dense", *OURS)


def build_update(kind: str, args: argparse.Namespace) -> Callable[[], None]:
    """Returns what makes one update of one of :data:`KINDS`."""
    dictionary = measure.build_dictionary()
    task = SwitchableTranslationTask(SwitchableTranslationConfig(), dictionary, dictionary)
    if kind == "dense":
        model = measure.build_model("bart_base", dictionary, args.size)
        settings = {"criterion": "label_smoothed_cross_entropy", "label_smoothing": 0.1, "sentence_avg": False}
    else:
        model = measure.build_model("switchable_bart_base", dictionary, args.size)
        settings = {"criterion": "sd_policy_criterion", "label_smoothing": 0.1, "sentence_avg": False}
        if kind == "paper":
            settings.update(sd_preset="paper", sd_constraint_interval=args.constraint_interval)
        else:
            settings.update(sd_preset="recommended", sd_mode="budget", sd_distillation=0.9, sd_teacher="self")
            settings.update(sd_policy_freeze_update=int(kind == "deployed"), sd_policy_warmup_updates=0)
        decide_at_paper_rates(model)
    model.to(args.device)
    criterion = task.build_criterion(argparse.Namespace(**settings)).to(args.device)
    if kind in ("learning", "deployed"):  # the checkpoint that training starts from, as a rule
        criterion.distiller.teacher = measure.build_model("bart_base", dictionary, args.size).requires_grad_(False)
    optimizer = build_optimizer(model)
    sample = build_batch(dictionary, args)
    state = SimpleNamespace(update=1)  # a policy that is fixed from update 1 on

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


def decide_at_paper_rates(model: Any) -> None:
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


class Training:
    """Updates of one kind in a worker of their own.

    Args:
        request: ``kind``, one of :data:`KINDS`, and the command line.
    """

    def __init__(self, request: Dict[str, Any]):
        self.args = argparse.Namespace(**request)
        torch.set_num_threads(self.args.threads)
        self.update = build_update(self.args.kind, self.args)
        self.facts: Dict[str, Any] = {}

    def prepare(self, _: Dict[str, Any]) -> Dict[str, Any]:
        """Nothing to do: the batch is there."""
        return {}

    def warm_up(self) -> None:
        """One update, which also makes Adam's state."""
        self.update()
        accelerator.synchronize()

    def run(self) -> None:
        """As many updates as the constraint's longest period, so that turns are alike."""
        for _ in range(UPDATES):
            self.update()
        accelerator.synchronize()

    def result(self, _: Any) -> Dict[str, float]:
        """Peak memory of the updates so far, in GB."""
        on_accelerator = accelerator.peak_memory(self.args.device)
        if on_accelerator is not None:
            return {"peak_gb": on_accelerator}
        whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # loading included, where that is all we get
        return {"peak_gb": worker.peak_memory() or round(whole, 4)}


BUILDERS = {"training": Training}


def take_turns(args: argparse.Namespace) -> Dict[str, List[Dict[str, Any]]]:
    """Lets all kinds take turns; all or nothing."""
    with turns.Workers() as workers:
        for kind in KINDS:
            workers.start(kind)
            if workers.ask(kind, "build", software="training", kind=kind, **vars(args)) is not None:
                workers.ask(kind, "prepare")
        answers = workers.take_turns(args.rounds) if len(workers.running) == len(KINDS) else {}
    if len(answers) < len(KINDS):
        raise SystemExit("there is nothing to compare")
    return answers


def main() -> None:
    """Measures and writes ``training_step.json``."""
    parser = measure.arguments(__doc__.splitlines()[0], "training_step")
    parser.set_defaults(size="base")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--source-length", type=int, default=512)
    parser.add_argument("--target-length", type=int, default=64)
    parser.add_argument(
        "--constraint-interval", type=int, choices=(1, 2, 4), default=4, help="--sd-constraint-interval"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)  # for the record: this process computes nothing
    turns.end_workers_on_termination()
    answers = take_turns(args)
    shape = {"size": args.size, "batch": args.batch_size, "source": args.source_length, "target": args.target_length}
    shape.update(constraint_interval=args.constraint_interval, idle_cpu_share=turns.idle_share(answers))
    shape.update(device=args.device)
    seconds = {kind: [one / UPDATES for one in turns.seconds_of(answers[kind])] for kind in KINDS}
    memory = {kind: [max(one["result"]["peak_gb"] for one in answers[kind])] for kind in KINDS}
    rows = []
    for kind in OURS:
        case, peer = f"training-step-{kind}", "fairseq bart"
        rows.append(measure.row(case + "-time", seconds[kind], peer, seconds["dense"], **shape))
        row = measure.row(case + "-memory", memory[kind], peer, memory["dense"], **shape)
        rows.append({**row, "unit": "GB", "ours_gb": memory[kind][0], "peer_gb": memory["dense"][0]})
    measure.write(args.output, rows)


if __name__ == "__main__":
    main()
