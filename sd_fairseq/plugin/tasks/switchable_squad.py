"""``--task switchable_squad``: extractive question answering with switchable models (section 4.1; SQuAD 1.1 and 2.0).

DATA holds ``dict.txt``, the files of one tokeniser (``encoder.json`` and ``vocab.bpe``, or ``sentencepiece.model``) and
the questions as SQuAD has them: ``train.json``, ``valid.json``, ..., each plain or ``.gz``.
"""

import logging
import os
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II

from sd_fairseq.decision.token_strategies import DEFAULT_TOKEN_STRATEGIES, parse_token_strategies
from sd_fairseq.evaluation.squad_data import Question, read_questions
from sd_fairseq.plugin.criterions.span_evaluator import SpanEvaluator
from sd_fairseq.plugin.guards.dictionaries import read_dictionary
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.span_head import register_span_head
from sd_fairseq.plugin.squad.offsets import load_tokeniser
from sd_fairseq.plugin.squad.window_dataset import WindowDataset
from sd_fairseq.plugin.squad.windows import WindowMaker, WindowSizes
from sd_fairseq.plugin.tasks.switchable_task import SwitchableTaskMixin

logger = logging.getLogger(__name__)


@dataclass
class SwitchableSquadConfig(FairseqDataclass):
    """Options of the task."""

    data: str = field(default="", metadata={"help": "folder of dict.txt, tokeniser and questions"})
    max_positions: int = field(default=512, metadata={"help": "tokens of a window: question, context, 4 separators"})
    sd_stride: int = field(
        default=128, metadata={"help": "tokens from one window of a long context to the next (BERT: 128)"}
    )
    sd_question_tokens: int = field(
        default=64, metadata={"help": "tokens of a question; the end of a longer one is cut off (BERT: 64)"}
    )
    sd_token_strategies: Optional[str] = field(
        default=None,
        metadata={
            "help": "token strategies to choose from, comma-separated: keep first, then last:PERCENT and "
            f"uniform:PERCENT (default and paper: {DEFAULT_TOKEN_STRATEGIES})"
        },
    )
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")


@register_task("switchable_squad", dataclass=SwitchableSquadConfig)
class SwitchableSquadTask(SwitchableTaskMixin, FairseqTask):
    """Question answering with per-input decisions: one decision an input window.

    Args:
        cfg: the options.
        dictionary: fairseq's.
        maker: of windows.
    """

    cfg: SwitchableSquadConfig

    def __init__(self, cfg: SwitchableSquadConfig, dictionary: Dictionary, maker: WindowMaker):
        super().__init__(cfg)
        self.dictionary, self.maker = dictionary, maker

    @classmethod
    def setup_task(cls, cfg: SwitchableSquadConfig, **kwargs: Any) -> "SwitchableSquadTask":
        """Checks the options, loads dictionary and tokeniser.

        Raises:
            InputError: naming the option or file and what is expected.
        """
        try:
            parse_token_strategies(cfg.sd_token_strategies or DEFAULT_TOKEN_STRATEGIES)
        except ValueError as error:
            raise InputError(f"--sd-token-strategies: {error}") from error
        sizes = WindowSizes(cfg.max_positions, cfg.sd_stride, cfg.sd_question_tokens)
        path = os.path.join(cfg.data, "dict.txt")
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file; examples/squad/prepare.py makes the data folder")
        dictionary = read_dictionary(path)
        dictionary.add_symbol("<mask>")  # bart.large has a row for it
        return cls(cfg, dictionary, WindowMaker(load_tokeniser(cfg.data), dictionary, sizes))

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Builds the model with the span head.

        Raises:
            InputError: a model that takes shorter inputs than the windows are, or has no room for heads.
        """
        model = super().build_model(cfg, from_checkpoint)
        limit = min(model.max_positions())
        if self.cfg.max_positions > limit:
            raise InputError(f"--max-positions {self.cfg.max_positions}, but the model takes {limit} tokens")
        if not hasattr(model, "classification_heads"):
            raise InputError(f"--task switchable_squad needs --arch switchable_bart*, found {type(model).__name__}")
        register_span_head(model)
        return model

    def read_split(self, split: str) -> List[Question]:
        """Reads the questions of a split.

        Raises:
            InputError: no such file, or one that cannot be used.
        """
        paths = [os.path.join(self.cfg.data, split + ending) for ending in (".json", ".json.gz")]
        found = [path for path in paths if os.path.isfile(path)]
        if not found:
            raise InputError(f"{paths[0]}: no such file, plain or .gz")
        return read_questions(found[0])

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> WindowDataset:
        """Loads a split and cuts it into windows."""
        questions = self.read_split(split)
        before = self.maker.shortened
        windows = self.maker.make(questions)
        logger.info("%s: %d questions in %d windows", split, len(questions), len(windows))
        if self.maker.shortened > before:
            cut = self.maker.shortened - before
            logger.warning("%s: the end of %d questions is cut off (--sd-question-tokens)", split, cut)
        is_train = split == self._train_subset()
        self.datasets[split] = WindowDataset(windows, self.dictionary.pad(), shuffle=is_train)
        return self.datasets[split]

    def build_evaluator(self, model: Any, sample: Dict[str, Any], padding: int, smoothing: float) -> SpanEvaluator:
        """Returns what scores paths of a batch by the span head."""
        return SpanEvaluator(model, sample, padding, smoothing)

    def reduce_metrics(self, logging_outputs: List[Dict[str, Any]], criterion: Any) -> None:
        """Logs the criterion's figures, and the percentage of windows whose answer is found to the token."""
        super().reduce_metrics(logging_outputs, criterion)
        windows = sum(int(output.get("head_examples", 0)) for output in logging_outputs)
        for name in ("span_both_ends", "span_one_end") if windows else ():
            right = sum(float(output.get(name, 0)) for output in logging_outputs)
            metrics.log_scalar(name, 100 * right / windows, windows, round=2)

    def max_positions(self) -> int:
        """Longest window, in tokens."""
        return self.cfg.max_positions

    @property
    def source_dictionary(self) -> Dictionary:
        """The only dictionary."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The only dictionary."""
        return self.dictionary
