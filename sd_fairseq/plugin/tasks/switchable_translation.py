"""``--task switchable_translation``: fairseq's translation task for switchable models."""

import sys
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from sd_fairseq.decision.token_strategies import DEFAULT_TOKEN_STRATEGIES, parse_token_strategies
from sd_fairseq.plugin.generation.choose_path import VALID_PATHS, read_path
from sd_fairseq.plugin.generation.fast_model import PRECISIONS
from sd_fairseq.plugin.guards.errors import InputError, fairseq_command
from sd_fairseq.plugin.repairs.alignment import align_hypotheses
from sd_fairseq.plugin.repairs.diverse_search import repair_search
from sd_fairseq.plugin.tasks.data_checks import check_not_empty, leave_out_empty
from sd_fairseq.plugin.tasks.switchable_task import SwitchableTaskMixin
from sd_fairseq.plugin.text.identity_dictionary import IdentityDictionary, is_identity

GENERATORS = ("fast", "fairseq")


@dataclass
class SwitchableTranslationConfig(TranslationConfig):
    """Translation's options and our own."""

    sd_token_strategies: Optional[str] = field(
        default=None,
        metadata={
            "help": "token strategies to choose from, comma-separated: keep first, then last:PERCENT and "
            f"uniform:PERCENT (default and paper: {DEFAULT_TOKEN_STRATEGIES})"
        },
    )
    sd_trace: Optional[str] = field(
        default=None,
        metadata={
            "help": "write decisions, lengths, FLOPs and time of every generated example to this JSON-lines file"
        },
    )
    sd_path: Optional[str] = field(
        default=None,
        metadata={"help": f"who decides in a generation, in place of the checkpoint's policy: {VALID_PATHS}"},
    )
    sd_flops_budget: Optional[float] = field(
        default=None,
        metadata={
            "help": "share of the dense FLOPs that a generation may cost, of a checkpoint that was trained for a range "
            "(--sd-budget-range)"
        },
    )
    sd_generator: ChoiceEnum(GENERATORS) = field(
        default="fast",
        metadata={
            "help": "how models run in a search: fast (packed weights, caches written in place, a skipped sub-layer is "
            "not touched) or fairseq (as fairseq runs them); the hypotheses are the same"
        },
    )
    sd_batch_by_path: int = field(
        default=1,
        metadata={
            "help": "generate the documents of so many batches path by path, so that those of a batch skip the same: "
            "faster where paths differ much; each document's output stays; 1 = batches as they come"
        },
    )
    sd_generation_precision: ChoiceEnum(list(PRECISIONS)) = field(
        default="model",
        metadata={"help": "precision of the fast generator's weights and activations; model = the checkpoint's own"},
    )


@register_task("switchable_translation", dataclass=SwitchableTranslationConfig)
class SwitchableTranslationTask(SwitchableTaskMixin, TranslationTask):
    """Translation with per-input decisions.

    Args:
        cfg: the options.
        src_dict, tgt_dict: fairseq dictionaries.
    """

    cfg: SwitchableTranslationConfig
    replaces_unknown_words = False
    lines_read = 0  # by fairseq-interactive, buffer by buffer

    @classmethod
    def load_dictionary(cls, filename: str) -> Any:
        """As fairseq's; also the dictionary of an imported model (fairseq-preprocess comes here, too)."""
        return IdentityDictionary.load(filename) if is_identity(filename) else super().load_dictionary(filename)

    @classmethod
    def setup_task(cls, cfg: SwitchableTranslationConfig, **kwargs: Any) -> "SwitchableTranslationTask":
        """Checks the options (InputError), then loads the dictionaries as translation does."""
        try:
            parse_token_strategies(cfg.sd_token_strategies or DEFAULT_TOKEN_STRATEGIES)
        except ValueError as error:
            raise InputError(f"--sd-token-strategies: {error}") from error
        if cfg.sd_path is not None:
            read_path(cfg.sd_path)
        return super().setup_task(cfg, **kwargs)

    def build_generator(self, models: Any, args: Any, *more: Any, **kwargs: Any) -> Any:
        """As the mixin's; diverse beam search gets every sentence's own penalty."""
        generator = super().build_generator(models, args, *more, **kwargs)
        if hasattr(generator, "search"):
            generator.search = repair_search(generator.search, self.target_dictionary)
        self.replaces_unknown_words = getattr(args, "replace_unk", None) is not None
        return generator

    def inference_step(self, generator: Any, models: Any, sample: Any, *more: Any, **kwargs: Any) -> Any:
        """As the mixin's; for ``--replace-unk`` it also aligns every word with one of the source."""
        hypotheses = super().inference_step(generator, models, sample, *more, **kwargs)
        if self.replaces_unknown_words:
            align_hypotheses(sample["net_input"]["src_tokens"], hypotheses, self.source_dictionary.pad())
        return hypotheses

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> None:
        """Loads a split; refuses empty source lines."""
        super().load_dataset(split, *args, **kwargs)
        check_not_empty(self.datasets[split], split)

    def build_dataset_for_inference(self, src_tokens: Any, src_lengths: Any, constraints: Any = None) -> Any:
        """As translation's; no empty line is decoded.

        One rule for all ways in: nothing is said about an empty source. What is read as a whole (a data set, the hub's
        list) is refused before any work; what is typed line by line (fairseq-interactive) loses that line only.
        """
        dataset = super().build_dataset_for_inference(src_tokens, src_lengths, constraints=constraints)
        if fairseq_command(sys.argv[0] if sys.argv else "") == "interactive":
            leave_out_empty(dataset, self.lines_read)
            if self._traces():
                self._start_trace().number_lines(dataset, self.lines_read)
            self.lines_read += len(dataset)
        else:
            check_not_empty(dataset, "input")
        return dataset
