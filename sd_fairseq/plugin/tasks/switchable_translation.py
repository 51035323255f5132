"""``--task switchable_translation``: fairseq's translation task for switchable models."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import OmegaConf, open_dict

from sd_fairseq.decision.token_strategies import DEFAULT_TOKEN_STRATEGIES, parse_token_strategies
from sd_fairseq.plugin.generation.fast_model import PRECISIONS
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.conversion import PATHS
from sd_fairseq.plugin.repairs.alignment import align_hypotheses
from sd_fairseq.plugin.repairs.diverse_search import repair_search
from sd_fairseq.plugin.tasks.switchable_task import SwitchableTaskMixin, check_not_empty

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
    sd_path: Optional[str] = field(
        default=None,
        metadata={"help": f"who decides when a checkpoint is loaded: {PATHS} (default: learned)"},
    )
    sd_trace: Optional[str] = field(
        default=None,
        metadata={
            "help": "write decisions, lengths, FLOPs and time of every generated example to this JSON-lines file"
        },
    )
    sd_generator: ChoiceEnum(GENERATORS) = field(
        default="fast",
        metadata={
            "help": "how models run in a search: fast (packed weights, caches written in place, a skipped sub-layer is "
            "not touched) or fairseq (as fairseq runs them); the hypotheses are the same"
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

    @classmethod
    def setup_task(cls, cfg: SwitchableTranslationConfig, **kwargs: Any) -> "SwitchableTranslationTask":
        """Checks the options, then loads the dictionaries as translation does."""
        try:
            parse_token_strategies(cfg.sd_token_strategies or DEFAULT_TOKEN_STRATEGIES)
        except ValueError as error:
            raise InputError(f"--sd-token-strategies: {error}") from error
        return super().setup_task(cfg, **kwargs)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """As the mixin's; data are read up to the positions that the model has."""
        model = super().build_model(cfg, from_checkpoint)
        with open_dict(self.cfg) if OmegaConf.is_config(self.cfg) else nullcontext():
            for name, limit in zip(("max_source_positions", "max_target_positions"), model.max_positions()):
                setattr(self.cfg, name, min(getattr(self.cfg, name), limit))
        return model

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
        """As translation's; refuses empty lines."""
        dataset = super().build_dataset_for_inference(src_tokens, src_lengths, constraints=constraints)
        check_not_empty(dataset, "input")
        return dataset
