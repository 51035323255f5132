"""``sd-rouge``: see :mod:`sd_fairseq.evaluation.rouge`."""

import sys

from sd_fairseq.evaluation.rouge import main

if __name__ == "__main__":
    sys.exit(main())
