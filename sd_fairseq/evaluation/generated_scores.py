"""One way to score what fairseq-generate wrote, for `--scoring sd_rouge` and `sd-report`: equal texts, equal digits.

ROUGE-1.5.5 cuts a text at its first '<' and draws its bootstrap in the order of the documents. fairseq writes unknown
words as '<unk>' and prints batches in an order of its own, so both are settled here before files2rouge's ROUGE scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from sd_fairseq.evaluation.rouge import RougeScore, document_scores, format_signature, rouge
from sd_fairseq.evaluation.rouge_words import read_exceptions, stem_word

UNKNOWN_REFERENCE = "<<unk>>"  # as fairseq escapes it, so that it matches no unknown word of a hypothesis
UNKNOWN = "<unk>"


def replace_unknown(text: str) -> str:
    """Replaces fairseq's unknown words by words that ROUGE-1.5.5 keeps; a reference's matches no hypothesis's."""
    return text.replace(UNKNOWN_REFERENCE, " unknownreference ").replace(UNKNOWN, " unknownhypothesis ")


@dataclass(frozen=True)
class Scoring:
    """What decides the digits.

    Args:
        eos: end of sentence, after a space.
        ptb: whether both sides are tokenised first (Penn Treebank).
        exceptions: irregular forms.
    """

    eos: str = "."
    ptb: bool = False
    exceptions: Optional[Mapping[str, str]] = None

    @classmethod
    def load(cls, eos: str = ".", ptb: bool = False, exceptions: Optional[str] = None) -> Scoring:
        """Reads what the options name, and tries it, before anything is generated or read.

        Args:
            eos, ptb: see the class.
            exceptions: folder with WordNet's `*.exc` files.

        Raises:
            ImportError: a package is missing.
            ValueError: the folder holds no such files.
        """
        scoring = cls(eos, ptb, read_exceptions(exceptions) if exceptions else None)
        stem_word("missing")
        scoring.prepare("What is missing shows before anything is generated.")
        return scoring

    def prepare(self, text: str) -> str:
        """Returns the text as it is scored."""
        text = replace_unknown(text)
        if not self.ptb:
            return text
        from sd_fairseq.evaluation.ptb import tokenize  # NLTK is slow to import

        return tokenize(text)

    def rouge(self, hypotheses: Sequence[str], references: Sequence[str]) -> Dict[str, RougeScore]:
        """Scores prepared texts; the result does not depend on their order. An empty side scores 0.

        Raises:
            ValueError: nothing to score.
        """
        pairs: Sequence[Tuple[str, str]] = sorted(zip(references, hypotheses))
        ordered = [hypothesis for _, hypothesis in pairs], [reference for reference, _ in pairs]
        return rouge(*ordered, " " + self.eos, count_empty=True, exceptions=self.exceptions)

    def by_document(self, hypotheses: Sequence[str], references: Sequence[str], metric: str = "rougeL") -> np.ndarray:
        """Returns F1 of every document in the order given, [documents], 0-1; texts are prepared."""
        options = {"count_empty": True, "exceptions": self.exceptions}
        return document_scores(hypotheses, references, " " + self.eos, **options)[metric]

    def signature(self, documents: int) -> str:
        """Names what decides the digits of that many documents, in one line."""
        choices = {"exceptions": self.exceptions is not None, "ptb": self.ptb}
        return format_signature(documents, " " + self.eos, **choices)
