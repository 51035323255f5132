"""Choose the quick start's pairs from the full set of Debian package descriptions, the same ones on every machine.

Source: train.jsonl.gz and valid.jsonl.gz, one JSON object a line with package, source, section, document, summary.
"""

import argparse
import gzip
import hashlib
import json
import os
import sys
from typing import Dict, List

KEPT_FIELDS = ("package", "section", "document", "summary")
TRAIN_PAIRS, VALID_PAIRS, TEST_PAIRS = 7000, 300, 1100
MAX_DOCUMENT_WORDS = 200


def read_pairs(path: str) -> List[Dict[str, str]]:
    """Read a .jsonl.gz file, drop over-long documents and order the rest by the SHA-1 of the package name."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    pairs = [pair for pair in pairs if len(pair["document"].split()) <= MAX_DOCUMENT_WORDS]
    return sorted(pairs, key=lambda pair: hashlib.sha1(pair["package"].encode("utf-8")).hexdigest())


def write_pairs(path: str, pairs: List[Dict[str, str]]) -> str:
    """Write pairs as .jsonl.gz without a time stamp; return a README table row with count, size and hashes."""
    kept = [{field: pair[field] for field in KEPT_FIELDS} for pair in pairs]
    text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in kept).encode("utf-8")
    with open(path, "wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as packed:
            packed.write(text)
    with open(path, "rb") as written:
        packed_bytes = written.read()
    hashes = " | ".join("`{}`".format(hashlib.sha256(data).hexdigest()) for data in (packed_bytes, text))
    return "| {} | {:,} | {:,} | {} |".format(os.path.basename(path), len(pairs), len(packed_bytes), hashes)


def main() -> None:
    """Write train, valid and test of the quick start and print the table of its README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="folder with the full train.jsonl.gz and valid.jsonl.gz")
    parser.add_argument("destination", help="folder to write train.jsonl.gz, valid.jsonl.gz and test.jsonl.gz into")
    arguments = parser.parse_args()

    train = read_pairs(os.path.join(arguments.source, "train.jsonl.gz"))[:TRAIN_PAIRS]
    held_out = read_pairs(os.path.join(arguments.source, "valid.jsonl.gz"))[: VALID_PAIRS + TEST_PAIRS]
    if len(train) < TRAIN_PAIRS or len(held_out) < VALID_PAIRS + TEST_PAIRS:
        sys.exit("too few pairs: {} for training, {} held out".format(len(train), len(held_out)))
    shared = {pair["source"] for pair in train} & {pair["source"] for pair in held_out}
    if shared:
        sys.exit("source packages in both training and held-out pairs: " + ", ".join(sorted(shared)))

    os.makedirs(arguments.destination, exist_ok=True)
    splits = {"train": train, "valid": held_out[:VALID_PAIRS], "test": held_out[VALID_PAIRS:]}
    for name, pairs in splits.items():
        print(write_pairs(os.path.join(arguments.destination, name + ".jsonl.gz"), pairs))


if __name__ == "__main__":
    main()
