"""Memory that packed products keep after batches of many lengths; a benchmark of one length does not see it.

``python benchmarks/memory_of_lengths.py``: prints MiB of resident memory after so many numbers of rows, with row
counts as they come and rounded up.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch

from sd_fairseq.execution import packed_linear

SHAPES = ((256, 1024), (1024, 256), (256, 768), (256, 256))  # inputs, outputs of one small layer


def resident() -> float:
    """Returns the resident memory, in MiB."""
    with open("/proc/self/statm", encoding="utf-8") as text:
        return int(text.read().split()[1]) * resource.getpagesize() / 2**20


@torch.no_grad()
def measure(lengths: int, rounded: bool) -> float:
    """Returns how much the memory grows over products of that many numbers of rows, largest first."""
    if not rounded:
        packed_linear.ROWS_ROUNDED = 10**9
    products = [packed_linear.PackedLinear(torch.randn(outputs, inputs)) for inputs, outputs in SHAPES]
    for rows in (lengths, 1):
        for product, (inputs, _) in zip(products, SHAPES):
            product(torch.randn(rows, inputs))
    before = resident()
    for rows in range(lengths, 0, -1):
        for product, (inputs, _) in zip(products, SHAPES):
            product(torch.randn(rows, inputs))
    return resident() - before


def main() -> None:
    """Measures each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, default=600, help="numbers of rows (default: %(default)s)")
    parser.add_argument("--rounded", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounded is not None:
        print(f"{measure(args.lengths, bool(args.rounded)):.1f}")
        return
    for name, rounded in (("as they come", 0), ("rounded up", 1)):
        command = [sys.executable, __file__, "--lengths", str(args.lengths), "--rounded", str(rounded)]
        print(f"{name}: {subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode().strip()} MiB")


if __name__ == "__main__":
    main()
