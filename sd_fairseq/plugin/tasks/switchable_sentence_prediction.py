"""``--task switchable_sentence_prediction``: fairseq's classification task for switchable models.

Encoder and decoder read the same tokens, a head reads the decoder's state at the final ``</s>`` (section 4.1; BART's
GLUE recipe). Token skipping shortens the encoder's side only.
"""

import os
from dataclasses import dataclass, field
from typing import Any, Dict, Optional

import numpy as np
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from sd_fairseq.decision.token_strategies import DEFAULT_TOKEN_STRATEGIES, parse_token_strategies
from sd_fairseq.plugin.criterions.sentence_evaluator import SentenceEvaluator
from sd_fairseq.plugin.guards.dictionaries import read_dictionary
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.tasks.switchable_task import SwitchableTaskMixin


@dataclass
class SwitchableSentencePredictionConfig(SentencePredictionConfig):
    """Sentence prediction's options and our own.

    fairseq takes head name and kind of target from the criterion of the same name; here the task has them itself, so
    that any criterion will do.
    """

    regression_target: bool = field(default=False, metadata={"help": "predict numbers; quality is the squared error"})
    classification_head_name: str = field(
        default="sentence_classification_head", metadata={"help": "name of the head that is trained and asked"}
    )
    sd_sort_by_length: bool = field(
        default=False,
        metadata={
            "help": "batches of sentences of similar length, in random order: less padding (fairseq: any lengths)"
        },
    )
    sd_token_strategies: Optional[str] = field(
        default=None,
        metadata={
            "help": "token strategies to choose from, comma-separated: keep first, then last:PERCENT and "
            f"uniform:PERCENT (default and paper: {DEFAULT_TOKEN_STRATEGIES})"
        },
    )


@register_task("switchable_sentence_prediction", dataclass=SwitchableSentencePredictionConfig)
class SwitchableSentencePredictionTask(SwitchableTaskMixin, SentencePredictionTask):
    """Sentence (or sentence pair) classification or regression with per-input decisions.

    Args:
        cfg: the options.
        data_dictionary, label_dictionary: fairseq dictionaries.
    """

    cfg: SwitchableSentencePredictionConfig

    @classmethod
    def setup_task(cls, cfg: SwitchableSentencePredictionConfig, **kwargs: Any) -> "SwitchableSentencePredictionTask":
        """Checks the options, then loads the dictionaries as sentence prediction does.

        ``--add-prev-output-tokens`` is always on: the head reads the decoder.
        """
        check_options(cfg)
        cfg.add_prev_output_tokens = True
        task = super().setup_task(cfg, **kwargs)
        labels = len(task.label_dictionary) - task.label_dictionary.nspecial - 1  # fairseq adds a <mask>
        if not cfg.regression_target and labels != cfg.num_classes:
            raise InputError(f"--num-classes {cfg.num_classes}, but the data's label dictionary has {labels} labels")
        return task

    @classmethod
    def load_dictionary(cls, filename: str) -> Any:
        """As sentence prediction's, with one line where it cannot be read."""
        dictionary = read_dictionary(filename)
        dictionary.add_symbol("<mask>")
        return dictionary

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> Any:
        """As sentence prediction's; with ``--sd-sort-by-length`` ordered by length, equal ones at random."""
        dataset = super().load_dataset(split, *args, **kwargs)
        if self.cfg.sd_sort_by_length and hasattr(dataset, "sort_order"):
            dataset.sort_order = [*dataset.sort_order, np.asarray(dataset.sizes[0])]
        return dataset

    def build_evaluator(self, model: Any, sample: Dict[str, Any], padding: int, smoothing: float) -> SentenceEvaluator:
        """Returns what scores paths of a batch by the head."""
        if "target" not in sample:
            raise InputError("the data has no labels to train on or to validate with")
        head, regression = self.cfg.classification_head_name, self.cfg.regression_target
        return SentenceEvaluator(model, sample, padding, smoothing, head, regression)

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As the mixin's.

        Raises:
            InputError: a sentence longer than the model takes, unless such sentences are to be left out.
        """
        limit = kwargs.get("max_positions")
        if limit is not None and not kwargs.get("ignore_invalid_inputs", False):
            check_sizes(dataset, min(limit) if isinstance(limit, (tuple, list)) else limit)
        return super().get_batch_iterator(dataset, *args, **kwargs)


def check_options(cfg: SwitchableSentencePredictionConfig) -> None:
    """Refuses what cannot be trained.

    Raises:
        InputError: naming the option or file and what is expected.
    """
    try:
        parse_token_strategies(cfg.sd_token_strategies or DEFAULT_TOKEN_STRATEGIES)
    except ValueError as error:
        raise InputError(f"--sd-token-strategies: {error}") from error
    if cfg.num_classes < 1:
        raise InputError(f"--num-classes {cfg.num_classes} is not 1 or more")
    if str(cfg.shorten_method) != "none":
        raise InputError(
            f"--shorten-method {cfg.shorten_method} cuts off the final </s>, which the head reads; shorten the texts "
            "when they are prepared"
        )
    if getattr(cfg, "d2v2_multi", False):
        raise InputError("--d2v2-multi is for another model")
    for folder in ["input0"] if cfg.regression_target else ["input0", "label"]:
        path = os.path.join(cfg.data, folder, "dict.txt")
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file; data of a sentence task has input0/, label/, pairs also input1/")


def check_sizes(dataset: Any, limit: int) -> None:
    """Refuses a data set with an example longer than the model takes.

    Raises:
        InputError: naming the first such example, its length and the limit.
    """
    sizes = np.asarray(dataset.sizes[0])
    too_long = (sizes > limit).nonzero()[0]
    if too_long.size:
        raise InputError(
            f"sentence {int(too_long[0])} has {int(sizes[too_long[0]])} tokens, the model takes {int(limit)}; shorten "
            f"the texts when they are prepared, or use --skip-invalid-size-inputs-valid-test ({too_long.size} such)"
        )
