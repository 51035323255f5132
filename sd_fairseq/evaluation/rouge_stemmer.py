"""The stemmer inside ROUGE-1.5.5.

Source: the observed behaviour of ROUGE-1.5.5 behind files2rouge 2.1.0.
"""

from nltk.stem.porter import PorterStemmer

_STEP_4_SUFFIXES = (
    "ance ence able ible ement al er ic ant ou ism ate iti ous ive ize".split()  # no one ends in another
)


class RougeStemmer(PorterStemmer):
    """Porter's stemmer with the deviations of the one inside ROUGE-1.5.5."""

    def __init__(self) -> None:
        super().__init__(mode=PorterStemmer.MARTIN_EXTENSIONS)

    def _ends_double_consonant(self, word: str) -> bool:
        """Tell whether the last letter may be dropped as a double; a double y never is."""
        return not word.endswith("yy") and super()._ends_double_consonant(word)

    def _step4(self, word: str) -> str:
        """Strip one suffix of the list, then "ment", then "ent" or the "ion" of "sion" and "tion", each if m > 1.

        Unlike in Porter's step 4 the later rules also see what the first one left: "departmental" becomes "depart".
        """
        suffix = next((suffix for suffix in _STEP_4_SUFFIXES if word.endswith(suffix)), "")
        word = self._strip(word, suffix)
        word = self._strip(word, "ment")
        if word.endswith("ent"):
            return self._strip(word, "ent")
        return self._strip(word, "ion") if word.endswith(("sion", "tion")) else word

    def _strip(self, word: str, suffix: str) -> str:
        if not suffix or not word.endswith(suffix):
            return word
        stem = word[: -len(suffix)]
        return stem if self._measure(stem) > 1 else word
