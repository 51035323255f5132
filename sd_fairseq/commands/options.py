"""``python -m sd_fairseq.commands.options`` prints every option of model, task and criterion with its help.

fairseq's own ``--help`` ends before it knows the architecture, task and criterion, and so leaves their options out.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, Type

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks.sentence_prediction import SentencePredictionConfig
from fairseq.tasks.translation import TranslationConfig

from sd_fairseq.plugin.criterions.options import SDPolicyCriterionConfig
from sd_fairseq.plugin.models.options import DEFAULTS, add_model_options
from sd_fairseq.plugin.tasks.switchable_sentence_prediction import SwitchableSentencePredictionConfig
from sd_fairseq.plugin.tasks.switchable_squad import SwitchableSquadConfig
from sd_fairseq.plugin.tasks.switchable_translation import SwitchableTranslationConfig


def add_fields(group: Any, config: Type, inherited: Type) -> None:
    """Adds the fields of a fairseq configuration that its parent does not have and no other task has shown."""
    known = {field.name for field in fields(inherited)}
    for field in fields(config):
        shown = "--" + field.name.replace("_", "-") in group._option_string_actions
        if field.name not in known and not shown and "help" in field.metadata:
            help_text = f"{field.metadata['help']} (default: {field.default})".replace("%", "%%")
            metavar = field.name.split("_")[-1].upper()
            group.add_argument("--" + field.name.replace("_", "-"), help=help_text, metavar=metavar)


def build_parser() -> argparse.ArgumentParser:
    """Builds a parser that is only good for its help."""
    parser = argparse.ArgumentParser(prog="fairseq-train ... --user-dir sd_fairseq", add_help=False)
    model = parser.add_argument_group("--arch switchable_bart[_base|_large|_tiny]")
    add_model_options(model)
    for action in model._group_actions:
        action.help = f"{action.help} (default: {DEFAULTS[action.dest]})"
    task = parser.add_argument_group("--task switchable_translation")
    add_fields(task, SwitchableTranslationConfig, TranslationConfig)
    sentence = parser.add_argument_group("--task switchable_sentence_prediction")
    add_fields(sentence, SwitchableSentencePredictionConfig, SentencePredictionConfig)
    questions = parser.add_argument_group("--task switchable_squad")
    add_fields(questions, SwitchableSquadConfig, FairseqDataclass)
    criterion = parser.add_argument_group("--criterion sd_policy_criterion")
    add_fields(criterion, SDPolicyCriterionConfig, SDPolicyCriterionConfig.__mro__[1])
    return parser


if __name__ == "__main__":
    print(build_parser().format_help())
