"""Ninety of the shipped Debian pairs, of all lengths, drawn once: real text for small models."""

import gzip
import json
from pathlib import Path
from typing import Dict, List

VALID = Path(__file__).resolve().parents[1] / "examples" / "data" / "debian" / "valid.jsonl.gz"
LINES = [
    899, 1960, 68, 1216, 125, 1662, 352, 995, 900, 1650, 1590, 1205, 1690, 541, 317, 984, 761, 1268, 327, 1369,
    131, 1474, 1755, 1304, 831, 1298, 964, 344, 986, 351, 1348, 157, 1619, 26, 453, 1207, 897, 451, 1874, 1694,
    1128, 65, 774, 1935, 1707, 1080, 1, 2, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 18, 20, 21, 23, 24, 1667, 27, 29,
    31, 32, 33, 35, 38, 39, 41, 43, 47, 50, 51, 53, 54, 55, 56, 57, 59, 60, 62, 63, 67, 69, 71, 72,
]


def read_pairs() -> List[Dict[str, str]]:
    """Returns the pairs, each with "document" and "summary"."""
    with gzip.open(str(VALID), "rt", encoding="utf-8") as lines:
        every = lines.read().splitlines()
    return [json.loads(every[line]) for line in LINES]
