#!/usr/bin/env python3
"""Wall-clock of generation: switchable BART against fairseq's own BART, same weights, measured side by side.

Both models decode the same batches with the same number of steps, in turns; medians, their ratio and the FLOPs ratio
of the paths taken are printed. Weights are random: speed depends on the path, not on what the model has learned.
``--keep 1.0`` shows the overhead of the plugin itself.

    python benchmarks/generation_speed.py --keep 0.7 --batch-size 8 --beam 4
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.sequence_generator import SequenceGenerator

import sd_fairseq
from sd_fairseq.cost.path_flops import Lengths, relative_flops

SIZES = {"tiny": (128, 4, 4), "base": (768, 6, 12), "large": (1024, 12, 16)}


def build(arch, dictionary, size, **options):
    """Builds a model of the given size with the weights of seed 1."""
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
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=SimpleNamespace())
    torch.manual_seed(1)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task).eval()


def main():
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--keep", type=float, default=0.7, help="keep-probability of the random decisions")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--source-length", type=int, default=256)
    parser.add_argument("--target-length", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    dictionary = Dictionary()
    for index in range(args.vocabulary - 4):
        dictionary.add_symbol(f"w{index}")
    dense = build("bart_base", dictionary, args.size).to(args.device)
    switchable = build("switchable_bart_base", dictionary, args.size, sd_policy="random", sd_random_keep=args.keep)
    switchable.load_state_dict(dense.state_dict(), strict=True)
    models = {"fairseq bart": dense, "switchable_bart": switchable.to(args.device)}
    source = torch.randint(4, args.vocabulary, (args.batch_size, args.source_length), device=args.device)
    source[:, -1] = dictionary.eos()
    lengths = torch.full((args.batch_size,), args.source_length, device=args.device)
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
    times = {name: [] for name in models}
    for turn in range(args.rounds + 1):
        for name, model in models.items():
            generator = SequenceGenerator(
                [model], dictionary, args.beam, min_len=args.target_length, max_len_b=args.target_length
            )
            if args.device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            generator.generate([model], sample)
            if args.device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - started)
    decisions = switchable.encoder(source, lengths)["decisions"][0].to(torch.device("cpu"))
    steps = torch.full((args.batch_size,), args.target_length + 1)
    flops = relative_flops(
        "generation", switchable.shape, switchable.space, decisions, Lengths(lengths.cpu(), steps, args.beam)
    )
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(
            f"{name:16s} median {medians[name]:.3f} s, {min(values):.3f}..{max(values):.3f} s over {args.rounds} rounds"
        )
    print(
        f"time ratio {medians['switchable_bart'] / medians['fairseq bart']:.3f}, FLOPs ratio {float(flops.mean()):.3f} "
        f"| {vars(args)} torch:{torch.__version__} threads:{torch.get_num_threads()} "
        f"sd_fairseq:{sd_fairseq.__version__}"
    )


if __name__ == "__main__":
    main()
