"""What every benchmark needs: models of random weights, commands measured in turns, rows written as JSON.

Machines are noisy, so nothing is compared across runs: the candidates take turns, each turn's times stand beside each
other, and medians, their ratio and the spread of the ratios are printed.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional

import accelerator
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from tabulate import tabulate

import sd_fairseq
from sd_fairseq.decision.decisions import Decisions, DecisionSpace

SIZES = {"tiny": (128, 4, 4), "base": (768, 6, 12), "large": (1024, 12, 16)}  # C, layers a stack, heads
PAPER_RATES = {"attention": 0.085, "ffn": 0.1113, "token": 0.2875}  # Table 10, all stacks together
DISTRIBUTIONS = ("torch", "fairseq", "ve-fairseq", "fairseq-fixed", "numpy", "transformers", "ctranslate2")


def build_dictionary(symbols: int = 50264) -> Dictionary:
    """A dictionary of ``symbols`` words, BART's 50,264 by default."""
    dictionary = Dictionary()
    for index in range(symbols - 4):
        dictionary.add_symbol(f"w{index}")
    return dictionary


def model_arguments(arch: str, size: str = "large", **options: Any) -> argparse.Namespace:
    """fairseq's options of a model of BART's shape."""
    dim, layers, heads = SIZES[size]
    args = argparse.Namespace(
        arch=arch,
        task="translation",
        encoder_embed_dim=dim,
        encoder_ffn_embed_dim=4 * dim,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        **options,
    )
    ARCH_CONFIG_REGISTRY[arch](args)
    return args


def build_model(arch: str, dictionary: Dictionary, size: str = "large", **options: Any) -> Any:
    """A model of BART's shape with the random weights of seed 1."""
    args = model_arguments(arch, size, **options)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=SimpleNamespace())
    torch.manual_seed(1)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task).eval()


def random_sources(batch: int, length: int, dictionary: Dictionary) -> Dict[str, torch.Tensor]:
    """Random sources of one length, as a batch's ``net_input``."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, len(dictionary), (batch, length), generator=generator)
    tokens[:, -1] = dictionary.eos()
    return {"src_tokens": tokens, "src_lengths": torch.full((batch,), length)}


def decisions_at(
    space: DecisionSpace, batch: int, attention: float, ffn: float, token: float, seed: Optional[int] = None
) -> Decisions:
    """Decisions that skip the given shares of the switchable sub-layers and the nearest token strategy's share.

    Args:
        space: the decision space.
        batch: B.
        attention, ffn: share of each stack's sub-layers to skip, rounded to whole sub-layers and spread evenly.
        token: share of the source to drop; the two nearest strategies are mixed over the batch in proportion.
        seed: which sub-layers each example skips is shuffled with it; None = the same for all.
    """
    shuffle = None if seed is None else torch.Generator().manual_seed(seed)
    keep = torch.ones(batch, space.num_switches, dtype=torch.bool)
    rates = {"attention": attention, "ffn": ffn}
    for site in sorted({site for site, _ in space.switches}):
        outputs = [index for index, (name, _) in enumerate(space.switches) if name == site]
        total = space.layers_of(site)  # a rate is a share of all layers, as in Table 10
        count = min(len(outputs), round(rates["ffn" if site.endswith("ffn") else "attention"] * total))
        for row in range(batch):
            order = torch.arange(len(outputs)) if shuffle is None else torch.randperm(len(outputs), generator=shuffle)
            places = [int(order[(2 * i + 1) * len(outputs) // (2 * count)]) for i in range(count)]
            keep[row, [outputs[place] for place in places]] = False
    shares = [strategy_share(strategy) for strategy in space.token_strategies]
    nearest = min(range(len(shares)), key=lambda index: abs(shares[index] - token))
    return space.to_decisions(keep, torch.full((batch,), nearest, dtype=torch.long))


def strategy_share(strategy: Any) -> float:
    """The share of tokens that a strategy such as ``last:30`` drops."""
    _, _, percent = str(strategy).partition(":")
    return float(percent or 0) / 100


def take_turns(candidates: Dict[str, Callable[[], Any]], rounds: int) -> Dict[str, List[float]]:
    """Runs the candidates in turns, the first turn to warm up; returns seconds of every other round, by name.

    All in this process: for variants of one model. Different software takes turns as in ``turns.py``.

    Args:
        candidates: what is timed.
        rounds: turns that count.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in candidates}
    for turn in range(1 + rounds):
        for name, run in candidates.items():
            accelerator.synchronize()
            started = time.perf_counter()
            run()
            accelerator.synchronize()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def row(case: str, ours: List[float], peer: str, peers: List[float], **more: Any) -> Dict[str, Any]:
    """One result: medians, their ratio, and the range of the ratios of single rounds."""
    ratios = sorted(theirs / mine for mine, theirs in zip(ours, peers))
    return {
        "case": case,
        "ours_s": round(statistics.median(ours), 5),
        "peer": peer,
        "peer_s": round(statistics.median(peers), 5),
        "ratio": round(statistics.median(peers) / statistics.median(ours), 4),
        "spread": [round(ratios[0], 4), round(ratios[-1], 4)],
        "rounds": len(ours),
        **more,
        "threads": torch.get_num_threads(),
        "versions": versions(more.get("device", "cpu")),
    }


def versions(device: str = "cpu") -> Dict[str, str]:
    """Versions of everything that has a part in a time, and the processor that took it."""
    found = {"python": platform.python_version(), "sd_fairseq": sd_fairseq.__version__, "processor": processor(device)}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def processor(device: str = "cpu") -> str:
    """The processor's or accelerator's name."""
    on_accelerator = accelerator.name(device)
    if on_accelerator is not None:
        return on_accelerator
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


COLUMNS = [
    *("case", "ours_s", "peer", "peer_s", "ratio", "spread", "flops_ratio", "threads"),
    *("ours_memory_gb", "peer_memory_gb", "same_tokens"),
]


def write(path: str, rows: List[Dict[str, Any]]) -> None:
    """Writes rows as JSON, beside and renamed, and prints them as a table."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".tmp", "w", encoding="utf-8") as out:
        json.dump(rows, out, indent=1)
        out.write("\n")
    os.replace(path + ".tmp", path)
    columns = [name for name in COLUMNS if any(name in one for one in rows)]
    print(tabulate([[one.get(name, "") for name in columns] for one in rows], headers=columns))
    print(f"written: {path}")


def arguments(description: str, name: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--rounds", type=int, default=3, help="turns that count, after one that warms up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", default=os.path.join("runs", "bench", name + ".json"))
    return parser
