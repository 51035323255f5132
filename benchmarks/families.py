#!/usr/bin/env python3
"""Wall-clock of a pretrained T5's or LLaMA's generation: the fast generator beside Hugging Face's ``generate``.

Prompts are the shipped Debian pairs, weights ``sd-import``'s, the same in both; batch 1, one prompt after the other,
the number of tokens forced. Each candidate has a process of its own; they take turns.

    sd-import SOURCE runs/t5        examples/t5 and examples/llama say where sources are
    python benchmarks/families.py --model runs/t5 --precision fp32
    python benchmarks/families.py --model runs/t5 --precision fp32 --skip    ours alone, skipping 0, 1/4 and 1/2
"""

import argparse
import gzip
import json
import os
from typing import Any, Dict, List

import family_candidates
import measure
import torch
import turns

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAIRS = os.path.join(ROOT, "examples", "data", "debian", "valid.jsonl.gz")
INSTRUCTION = "Write a short title for this package description: "
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SKIPPED = (0.0, 0.25, 0.5)  # share of the sub-layers of every stack


def family_of(folder: str) -> str:
    """Returns ``t5`` or ``llama``."""
    args, _ = family_candidates.read_checkpoint(os.path.join(folder, "model.pt"))
    return str(family_candidates.options_of(args)["arch"]).split("_")[1]


def prompts_of(folder: str, count: int, words: int) -> List[List[int]]:
    """Returns the ids of prompts, without an end.

    Args:
        folder: of ``sd-import``.
        count: how many.
        words: of a document, at most.
    """
    from sd_fairseq.plugin.text.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(os.path.join(folder, "tokenizer.json"))
    template = CHAT if family_of(folder) == "llama" else "{}"
    with gzip.open(PAIRS, "rt", encoding="utf-8") as lines:
        documents = [" ".join(json.loads(line)["document"].split()[:words]) for line in lines]
    long = [one for one in documents if len(one.split()) == words]
    return [tokenizer.encode(template.format(INSTRUCTION + one)) for one in long[:count]]


def compare(args: argparse.Namespace, prompts: List[List[int]]) -> List[Dict[str, Any]]:
    """Measures both, greedily and with a beam."""
    family, path = family_of(args.model), os.path.join(args.model, "model.pt")
    model_eos = family_candidates.load_ours(args.model).decoder.dictionary.eos() if family == "llama" else 1
    common = {"threads": args.threads, "precision": args.precision, "weights": path, "eos": model_eos}
    rows: List[Dict[str, Any]] = []
    names = {"ours": "ours-family", "transformers": "transformers-family"}
    with turns.Workers() as workers:
        for name, software in names.items():
            workers.start(name)
            workers.ask(name, "build", software=software, **common)
        for beam in args.beams:
            for name in names:
                workers.ask(name, "prepare", prompts=prompts, target=args.target_length, beam=beam)
            answers = workers.take_turns(args.rounds, pause=args.pause)
            if set(answers) != set(names):
                raise SystemExit("a candidate failed: there is nothing to compare")
            rows.append(row_of(args, family, beam, prompts, answers))
            measure.write(args.output, rows)
    return rows


def row_of(args: argparse.Namespace, family: str, beam: int, prompts: List[List[int]], answers: Any) -> Dict[str, Any]:
    """One result; times are of all prompts together."""
    mine, theirs = (answers[name] for name in ("ours", "transformers"))
    pairs = [pair for both in zip(mine[-1]["result"], theirs[-1]["result"]) for pair in zip(*both)]
    same = round(sum(one == other for one, other in pairs) / max(1, len(pairs)), 4)
    if args.precision == "fp32" and same < 1:
        print(f"beam {beam}: {same:.1%} of the tokens are the same")
    return measure.row(
        f"{family}-{args.precision}-beam-{beam}",
        turns.seconds_of(mine),
        "transformers",
        turns.seconds_of(theirs),
        family=family,
        precision=args.precision,
        batch=1,
        beam=beam,
        prompts=len(prompts),
        source=round(sum(map(len, prompts)) / len(prompts)),
        target=args.target_length,
        same_tokens=same,
        ours_memory_gb=turns.memory_of(mine),
        peer_memory_gb=turns.memory_of(theirs),
        idle_cpu_share=turns.idle_share(answers),
        cpu_ratio=cpu_ratio(mine, theirs),
        threads_of_candidates=args.threads,
    )


def cpu_ratio(ours: List[Dict[str, Any]], peers: List[Dict[str, Any]]) -> float:
    """Returns the ratio of processor times, which other work on the machine disturbs less."""
    mine, theirs = (min(answer["cpu_s"] for answer in answers) for answers in (ours, peers))
    return round(theirs / mine, 4)


def skip(args: argparse.Namespace, prompts: List[List[int]]) -> List[Dict[str, Any]]:
    """Measures ours with more and more skipped, time beside FLOPs."""
    from sd_fairseq.cost.path_flops import Lengths, relative_flops
    from sd_fairseq.decision.decider import PathRequest

    family = family_of(args.model)
    common = {"threads": args.threads, "precision": args.precision, "weights": os.path.join(args.model, "model.pt")}
    ours, rows = family_candidates.Ours(common), []
    space = ours.model.space
    for beam in args.beams:
        ours.prepare({"prompts": prompts, "target": args.target_length, "beam": beam})
        decisions = {share: measure.decisions_at(space, 1, share, share, 0.0) for share in SKIPPED}

        def run(share: float) -> None:
            ours.path = PathRequest(decisions=decisions[share])  # noqa: B023  # called before the next beam
            ours.run()

        seconds = measure.take_turns({str(share): lambda share=share: run(share) for share in SKIPPED}, args.rounds)
        for share in SKIPPED:
            lengths = Lengths(torch.tensor([len(prompts[0]) + 1]), torch.tensor([args.target_length]), beam)
            flops = relative_flops("generation", ours.model.shape, space, decisions[share], lengths).mean()
            time_ratios = [mine / whole for mine, whole in zip(seconds[str(share)], seconds["0.0"])]
            case = f"{family}-{args.precision}-beam-{beam}-skipping-{share:g}"
            more = {"family": family, "precision": args.precision, "beam": beam, "batch": 1, "prompts": len(prompts)}
            more.update(skipped=share, flops_ratio=round(float(flops), 4), target=args.target_length)
            more["time_ratio"] = round(sorted(time_ratios)[len(time_ratios) // 2], 4)
            rows.append(measure.row(case, seconds[str(share)], "ours, nothing skipped", seconds["0.0"], **more))
            measure.write(args.output, rows)
    return rows


def main() -> None:
    """Measures and writes the JSON file."""
    parser = measure.arguments(__doc__.splitlines()[0], "families")
    parser.add_argument("--model", required=True, help="folder that sd-import wrote")
    parser.add_argument("--precision", choices=family_candidates.DTYPES, default="fp32")
    parser.add_argument("--beams", type=lambda text: [int(one) for one in text.split(",")], default=[1, 4])
    parser.add_argument("--prompts", type=int, default=3, help="measured together, one after the other")
    parser.add_argument("--words", type=int, default=60, help="of every document")
    parser.add_argument("--target-length", type=int, default=32)
    parser.add_argument("--pause", type=float, default=turns.PAUSE, help="seconds before a turn")
    parser.add_argument("--skip", action="store_true", help="ours alone, skipping 0, 1/4 and 1/2 of the sub-layers")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    turns.end_workers_on_termination()
    prompts = prompts_of(args.model, args.prompts, args.words)
    (skip if args.skip else compare)(args, prompts)


if __name__ == "__main__":
    main()
