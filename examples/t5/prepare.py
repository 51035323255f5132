"""Writes pairs of .jsonl.gz as text, an instruction before every source: OUT/SPLIT.source, OUT/SPLIT.target."""

import argparse
import gzip
import json
import os

INSTRUCTION = "Write a short title for this package description: "


def read_pairs(path: str):
    """Yields (document, summary), every run of white space made one blank."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            pair = json.loads(line)
            yield " ".join(pair["document"].split()), " ".join(pair["summary"].split())


def write_split(data: str, out: str, split: str, limit: int, instruction: str) -> int:
    """Writes one split, at most ``limit`` pairs (0 = all); returns how many."""
    pairs = list(read_pairs(os.path.join(data, split + ".jsonl.gz")))[: limit or None]
    for side, texts in (("source", [instruction + one for one, _ in pairs]), ("target", [one for _, one in pairs])):
        with open(os.path.join(out, f"{split}.{side}"), "w", encoding="utf-8") as text:
            text.writelines(one + "\n" for one in texts)
    return len(pairs)


def main() -> None:
    """Reads the command line and writes both splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder of train.jsonl.gz and valid.jsonl.gz")
    parser.add_argument("out", help="folder to write to")
    parser.add_argument("--instruction", default=INSTRUCTION, help="stands before every source (default: %(default)r)")
    parser.add_argument("--train", type=int, default=0, metavar="N", help="pairs to train on, 0 = all")
    parser.add_argument("--valid", type=int, default=200, metavar="N", help="held-out pairs, 0 = all")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    for split in ("train", "valid"):
        count = write_split(args.data, args.out, split, getattr(args, split), args.instruction)
        print(f"{args.out}/{split}.source, .target: {count} pairs")


if __name__ == "__main__":
    main()
