"""``sd-report``: see :mod:`sd_fairseq.evaluation.report`."""

import sys

from sd_fairseq.evaluation.report import main

if __name__ == "__main__":
    sys.exit(main())
