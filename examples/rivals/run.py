"""Train, generate and score rivals on the base of the trade-off grid, one JSON a row and seed.

    python examples/rivals/run.py --data DATA/data-bin --base BASE.pt --out OUT --results results/rivals --rows A,B

As examples/tradeoff/run.py, whose updates, batches, optimizer and search every row shares; the rows are those of
rows.tsv beside this script. What a rival may choose among stands in tuning.py; it chooses on valid.
"""

import os
import sys
from typing import Optional, Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(ROOT, "examples", "tradeoff"), HERE, ROOT, os.path.join(ROOT, "tools")]

import run as tradeoff  # noqa: E402
from rival_grid import RivalGrid  # noqa: E402


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    parser = tradeoff.build_parser()
    parser.description = __doc__
    parser.set_defaults(table=os.path.join(HERE, "rows.tsv"))
    return tradeoff.main(argv, RivalGrid, parser)


if __name__ == "__main__":
    sys.exit(main())
