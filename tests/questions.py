"""Question answering in small: real-looking questions, a tiny task and model over characters, a training run."""

import argparse
from typing import Any, List, Sequence

import torch
from factories import build_model, undecide
from training import PlainOptimizer, Training, build_criterion

from sd_fairseq.evaluation.squad_data import Answer, Question
from sd_fairseq.plugin.squad.offsets import Tokens
from sd_fairseq.plugin.squad.windows import WindowMaker, WindowSizes

CONTEXTS = (
    "Die Brücke wurde 1889 gebaut.",
    "In Kraków stands the Wawel; 東京 is far away, and so is everything else that is named here.",
    "Short one.",
    "The river rises in the hills, runs past three towns and ends in the sea, which takes it eleven days in spring.",
)
ANSWERS = ("1889", "東京", None, "eleven days")


class CharacterTokeniser:
    """One token a character; white space belongs to the character after it, as in GPT-2's BPE."""

    def tokenise(self, text: str) -> Tokens:
        places = [i for i, character in enumerate(text) if not character.isspace()]
        pieces = tuple(f"w{ord(text[i]) % 90}" for i in places)
        ends = [*(i + 1 for i in places[:-1]), len(text)]
        return Tokens(pieces, (0, *ends[:-1]), tuple(ends))


def build_questions() -> List[Question]:
    """Four questions, one of them without an answer."""
    return [
        Question(
            id=f"q{index}",
            text="when or where?"[: 6 + 2 * index],
            context=context,
            answers=() if answer is None else (Answer(answer, context.index(answer)),),
            impossible=answer is None,
            place=f"here, id q{index}",
        )
        for index, (context, answer) in enumerate(zip(CONTEXTS, ANSWERS))
    ]


def build_squad_task(sizes: Sequence[int] = (60, 16, 12)):
    """The task without data files."""
    from factories import build_dictionary

    from sd_fairseq.plugin.tasks.switchable_squad import SwitchableSquadConfig, SwitchableSquadTask

    cfg = argparse.Namespace(**{**vars(SwitchableSquadConfig()), "max_positions": sizes[0]})
    dictionary = build_dictionary()
    return SwitchableSquadTask(cfg, dictionary, WindowMaker(CharacterTokeniser(), dictionary, WindowSizes(*sizes)))


def build_reader(arch: str = "switchable_bart_base", **overrides: Any):
    """A tiny model in eval mode with a span head large enough to show every difference."""
    from sd_fairseq.plugin.models.span_head import register_span_head

    model = build_model(arch, **{"pooler_activation_fn": "tanh", "pooler_dropout": 0.0, **overrides})
    register_span_head(model)
    for parameter in model.classification_heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def build_windows(task: Any = None) -> List[Any]:
    """All windows of all questions."""
    return (task or build_squad_task()).maker.make(build_questions())


def batch_windows(rows: Any = None):
    """Some windows as the data set batches them."""
    from sd_fairseq.plugin.squad.window_dataset import WindowDataset

    dataset = WindowDataset(build_windows(), padding=1, shuffle=False)
    return dataset.collater([dataset[row] for row in (range(len(dataset)) if rows is None else rows)])


def build_squad_training(**criterion_options: Any) -> Training:
    """A reader with mixed deployed paths, its task, the criterion and an optimizer; always the same weights."""
    torch.manual_seed(7)
    model = build_reader()
    undecide(model)
    task = build_squad_task()
    return Training(task, model, build_criterion(task, **criterion_options), PlainOptimizer(model))
