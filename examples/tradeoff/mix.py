"""Mix pairs of several sources, so that inputs really differ: in length, in style, in what a summary needs.

    python examples/tradeoff/mix.py OUT --source NAME=FILE.jsonl.gz:LIMIT [--source ...]

A line of FILE is a JSON object with "document" and "summary", or, as in SciTLDR, with "source" (sentences) and "target"
(references: the first one counts). Of each source the LIMIT pairs with the lowest hashes of their documents are taken;
every tenth is for `valid`, every tenth for `test`. OUT gets {train,valid,test}.jsonl.gz, the same bytes every
time, in the order of the hashes, each pair with its source's name as "domain".
"""

import argparse
import gzip
import hashlib
import json
import os
import sys
import zlib
from typing import Any, Dict, List, Tuple

from split import DataError, write_lines

Pair = Tuple[str, bytes]  # hash of the document, JSON line


def read_texts(pair: Any, place: str) -> Tuple[str, str]:
    """Returns document and summary of a JSON object.

    Raises:
        DataError: keys missing, or texts that are neither strings nor lists of them.
    """
    keys = ("document", "summary") if isinstance(pair, dict) and "document" in pair else ("source", "target")
    if not isinstance(pair, dict) or any(key not in pair for key in keys):
        raise DataError("{}: expected an object with document and summary, or source and target".format(place))
    document, summary = (pair[key] for key in keys)
    document = " ".join(document) if isinstance(document, list) else document
    summary = summary[0] if isinstance(summary, list) and summary else summary
    if not isinstance(document, str) or not isinstance(summary, str):
        raise DataError("{}: {} and {} are no texts".format(place, *keys))
    return " ".join(document.split()), " ".join(summary.split())


def read_source(name: str, path: str, limit: int) -> List[Pair]:
    """Returns the ``limit`` pairs with the lowest hashes; repeated documents and empty texts are left out.

    Raises:
        DataError: an unreadable file or line, or fewer pairs than wanted.
    """
    found: Dict[str, bytes] = {}
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                document, summary = read_texts(json.loads(line), "{}:{}".format(path, number + 1))
                number += 1
                if document and summary:
                    pair = {"domain": name, "document": document, "summary": summary}
                    digest = hashlib.sha1(document.encode("utf-8")).hexdigest()
                    found.setdefault(digest, json.dumps(pair, ensure_ascii=False).encode("utf-8"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError("{}:{}: cannot be read as gzipped JSON lines ({})".format(path, number + 1, error)) from error
    if len(found) < limit:
        raise DataError("{}: {} different pairs, {} wanted".format(path, len(found), limit))
    return sorted(found.items())[:limit]


def mix(sources: Dict[str, Tuple[str, int]], out: str) -> Dict[str, int]:
    """Writes the mixture; returns the number of pairs of each split.

    Args:
        sources: name -> (file, limit).
        out: folder to write, made where it is missing.

    Raises:
        DataError: a source that cannot be used.
    """
    parts: Dict[str, List[Pair]] = {"train": [], "valid": [], "test": []}
    for name, (path, limit) in sources.items():
        for place, pair in enumerate(read_source(name, path, limit)):
            parts[{0: "valid", 5: "test"}.get(place % 10, "train")].append(pair)
    try:
        os.makedirs(out, exist_ok=True)
        for split, pairs in parts.items():
            part = os.path.join(out, ".{}.{}.part".format(split, os.getpid()))
            write_lines(part, [line for _, line in sorted(pairs)])
            os.replace(part, os.path.join(out, split + ".jsonl.gz"))
    except OSError as error:
        raise DataError("{}: cannot be written ({})".format(out, error.strerror)) from error
    return {split: len(pairs) for split, pairs in parts.items()}


def parse_source(text: str) -> Tuple[str, Tuple[str, int]]:
    """Reads NAME=FILE:LIMIT.

    Raises:
        DataError: it has another form.
    """
    name, _, rest = text.partition("=")
    path, _, limit = rest.rpartition(":")
    if not name or not path or not limit.isdigit() or int(limit) < 10:
        raise DataError("--source {!r}: expected NAME=FILE:LIMIT, LIMIT 10 or more".format(text))
    return name, (path, int(limit))


def main() -> None:
    """Parses the command line, mixes, and reports bad input in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--source", action="append", required=True, metavar="NAME=FILE:LIMIT")
    arguments = parser.parse_args()
    try:
        sources = [parse_source(text) for text in arguments.source]
        if len(dict(sources)) < len(sources):
            raise DataError("--source: a name stands twice")
        counts = mix(dict(sources), arguments.out)
    except DataError as error:
        sys.exit("mix.py: error: {}".format(error))
    print(", ".join("{} {:,}".format(name, count) for name, count in counts.items()))


if __name__ == "__main__":
    main()
