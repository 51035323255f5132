"""Says where the modules of version 0.1 went that are no longer there; to go with the next version.

Only names that documents have shown: ``python -m sd_fairseq.plugin.path_search`` answers with one line.
"""

import sys
from importlib.abc import MetaPathFinder

PLACES = {
    "sd_fairseq.evaluation.learning_table": "python tools/learning_table.py, in the repository",
    "sd_fairseq.evaluation.path_analysis": "sd-explain-paths",
    "sd_fairseq.evaluation.understanding_table": "python tools/understanding_table.py, in the repository",
    "sd_fairseq.plugin.constraint_check": "sd-check",
    "sd_fairseq.plugin.export": "sd-export",
    "sd_fairseq.plugin.gradient_noise": "sd-measure-noise",
    "sd_fairseq.plugin.match_random": "sd-match-random",
    "sd_fairseq.plugin.path_search": "sd-search-paths",
    "sd_fairseq.plugin.policy_fit": "sd-fit",
    "sd_fairseq.plugin.predict_sentences": "sd-classify",
    "sd_fairseq.plugin.predict_squad": "sd-answer",
    "sd_fairseq.plugin.show_options": "sd-options",
}


class Signposts(MetaPathFinder):
    """Is asked for a module when nobody has it."""

    def find_spec(self, fullname, path=None, target=None):
        """Returns None.

        Raises:
            ModuleNotFoundError: naming the new place, if the module has one.
        """
        if fullname in PLACES:
            raise ModuleNotFoundError(f"this is now {PLACES[fullname]}", name=fullname)
        return None


def install() -> None:
    """Adds the finder behind all others, once."""
    if not any(isinstance(finder, Signposts) for finder in sys.meta_path):
        sys.meta_path.append(Signposts())
