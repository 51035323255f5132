"""``sd-squad-score``: see :mod:`sd_fairseq.evaluation.squad_score`."""

import sys

from sd_fairseq.evaluation.squad_score import main

if __name__ == "__main__":
    sys.exit(main())
