"""``sd-options``: every option that this package adds to fairseq, by how often it is needed.

fairseq's own ``--help`` ends before it knows the architecture, task and criterion, and so leaves their options out.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Type

from sd_fairseq.commands.shared import make_parser, run

EVERYDAY = ("preset", "flops_budget", "tolerance", "space", "path", "trace", "generator", "policy_freeze_update")
ADVANCED = (
    *("mode", "policy", "policy_lr", "estimator", "distillation", "teacher", "cost_beam", "policy_warmup_updates"),
    *("flops_average", "initial_keep", "initial_path", "static_path", "random_keep", "token_strategies", "protect_end"),
    *("generation_precision", "sort_by_length", "stride", "question_tokens", "tokenizer", "line_ends"),
)
LEVELS = {
    "everyday": "Everyday",
    "advanced": "Advanced: other ways to train and to decide",
    "research": "Research: rows of the paper's tables, controls and details of the estimates",
}
ABOUT = "Prints every option that this package adds to fairseq, by how often it is needed."
BRACKETS = "[a | b]: values of `--sd-preset recommended` and `paper`; after a comma, those with `--sd-tolerance`."


class Option(NamedTuple):
    """One option.

    Args:
        name: without ``sd_``.
        home: architecture, task or criterion that takes it.
        default: None where the preset or the help says it.
        help: one sentence.
    """

    name: str
    home: str
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """As it is typed."""
        return "--sd-" + self.name.replace("_", "-")

    @property
    def level(self) -> str:
        """How often it is needed, a key of :data:`LEVELS`."""
        return "everyday" if self.name in EVERYDAY else "advanced" if self.name in ADVANCED else "research"

    @property
    def text(self) -> str:
        """Help and default."""
        says_it = self.default in (None, "", False) or "default:" in self.help
        return self.help if says_it else f"{self.help} (default: {self.default})"


def collect_options() -> List[Option]:
    """Lists all options, everyday ones first, each once."""
    from sd_fairseq.plugin.criterions.options import SDPolicyCriterionConfig
    from sd_fairseq.plugin.criterions.sd_exit_criterion import SDExitCriterionConfig
    from sd_fairseq.plugin.models.options import DEFAULTS, add_model_options
    from sd_fairseq.plugin.tasks.switchable_sentence_prediction import SwitchableSentencePredictionConfig
    from sd_fairseq.plugin.tasks.switchable_squad import SwitchableSquadConfig
    from sd_fairseq.plugin.tasks.switchable_translation import SwitchableTranslationConfig
    from sd_fairseq.plugin.text.tokenizer import SDTokenizerConfig

    model = argparse.ArgumentParser(add_help=False)
    add_model_options(model)
    found = [
        Option(action.dest[len("sd_") :], "model", DEFAULTS.get(action.dest), str(action.help))
        for action in model._actions
    ]
    found += of_fields(SDPolicyCriterionConfig, "criterion")
    found += of_fields(SDExitCriterionConfig, "sd_exit_criterion")
    found += of_fields(SwitchableTranslationConfig, "switchable_translation")
    found += of_fields(SwitchableSentencePredictionConfig, "switchable_sentence_prediction")
    found += of_fields(SwitchableSquadConfig, "switchable_squad")
    found += of_fields(SDTokenizerConfig, "--bpe sd_tokenizer")
    once: Dict[str, Option] = {}
    for option in found:
        once.setdefault(option.name, option)
    order = {name: place for place, name in enumerate((*EVERYDAY, *ADVANCED))}
    return sorted(once.values(), key=lambda option: order.get(option.name, len(order)))


def of_fields(config: Type, home: str) -> Iterable[Option]:
    """Yields the options of a fairseq configuration that are ours."""
    from dataclasses import fields

    for field in fields(config):
        if field.name.startswith("sd_"):
            yield Option(field.name[len("sd_") :], home, field.default, field.metadata["help"])


def render_markdown(options: Sequence[Option]) -> str:
    """Renders docs/options.md."""
    lines = ["# Options", "", "<!-- written by `sd-options --markdown > docs/options.md`; a test compares -->", ""]
    lines += [BRACKETS, ""]
    for level, title in LEVELS.items():
        lines += [f"## {title}", "", "| option | of | meaning |", "|---|---|---|"]
        rows = [option for option in options if option.level == level]
        lines += ["| `{}` | {} | {} |".format(one.flag, one.home, one.text.replace("|", "\\|")) for one in rows]
        lines.append("")
    return "\n".join(lines).rstrip("\n")


def render_text(options: Sequence[Option]) -> str:
    """Renders a help text."""
    usage = "fairseq-train ... --user-dir sd_fairseq"
    parser = argparse.ArgumentParser(usage=usage, description=BRACKETS, add_help=False)
    for level, title in LEVELS.items():
        group = parser.add_argument_group(title)
        for option in options:
            if option.level == level:
                group.add_argument(option.flag, metavar=option.home, help=option.text.replace("%", "%%"))
    return parser.format_help().rstrip("\n")


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = make_parser("sd-options", ABOUT, "sd-options --level everyday")
    text = "everyday: the few that most trainings and generations need (default: %(default)s)"
    parser.add_argument("--level", choices=("everyday", "all"), default="all", help=text)
    parser.add_argument("--markdown", action="store_true", help="as docs/options.md has them")
    return parser


def work(args: argparse.Namespace) -> None:
    """Prints the options."""
    options = [option for option in collect_options() if args.level in ("all", option.level)]
    print(render_markdown(options) if args.markdown else render_text(options))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command; returns its exit code."""
    return run(work, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
