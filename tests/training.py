"""A tiny training run through the real task and criterion, without fairseq's trainer."""

from argparse import Namespace
from typing import Any, Dict, List, NamedTuple, Sequence

import torch
from factories import build_dictionary, build_model, undecide


class PlainOptimizer:
    """The two methods that fairseq's tasks call, over stochastic gradient descent."""

    def __init__(self, model: torch.nn.Module, learning_rate: float = 0.05):
        self.inner = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=learning_rate)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.inner.step()
        self.inner.zero_grad()


class Training(NamedTuple):
    """All that takes part in an update."""

    task: Any
    model: Any
    criterion: Any
    optimizer: PlainOptimizer

    def step(self, sample: Dict[str, Any], update: int = 0, ignore_grad: bool = False):
        """Forward and backward pass of one micro-batch."""
        return self.task.train_step(sample, self.model, self.criterion, self.optimizer, update, ignore_grad)

    def update(self, samples: Sequence[Dict[str, Any]], update: int = 0) -> List[Dict[str, Any]]:
        """One whole update as fairseq's trainer makes it; returns what the micro-batches log."""
        self.criterion.train()
        logged = [self.step(sample, update)[2] for sample in samples]
        self.task.optimizer_step(self.optimizer, self.model, update)
        return logged

    def policy(self) -> torch.Tensor:
        """The policy's parameters, flat."""
        return torch.cat([p.detach().reshape(-1).clone() for p in self.model.encoder.policy.parameters()])

    def backbone(self) -> torch.Tensor:
        """The backbone's parameters, flat."""
        return torch.cat([p.detach().reshape(-1).clone() for p in self.model.parameters() if p.requires_grad])


def build_task():
    """The translation task over :func:`factories.build_dictionary`, without data."""
    from sd_fairseq.plugin.tasks.switchable_translation import SwitchableTranslationConfig, SwitchableTranslationTask

    dictionary = build_dictionary()
    return SwitchableTranslationTask(SwitchableTranslationConfig(), dictionary, dictionary)


def build_criterion(task: Any, **options: Any):
    """The policy criterion, built as the command line does it."""
    given = {"sentence_avg": False, "sd_preset": "paper", **options}
    return task.build_criterion(Namespace(criterion="sd_policy_criterion", **given))


def build_training(model_options: Any = None, mixed_paths: bool = True, **criterion_options: Any) -> Training:
    """A model, a task, the criterion and an optimizer; the same weights for the same seed of the test.

    Args:
        model_options: of the model.
        mixed_paths: True = deployed paths differ from example to example.
        criterion_options: ``sd_*`` options and ``label_smoothing`` of the criterion.
    """
    torch.manual_seed(7)
    model = build_model(**(model_options or {}))
    if mixed_paths:
        undecide(model)
    task = build_task()
    return Training(task, model, build_criterion(task, **criterion_options), PlainOptimizer(model))


def build_samples(split: Sequence[int] = (8,)) -> List[Dict[str, Any]]:
    """The same eight sentence pairs every time, as micro-batches of the given sizes."""
    from fairseq.data.language_pair_dataset import collate

    generator = torch.Generator().manual_seed(11)
    dictionary = build_dictionary()

    def sentence(length: int) -> torch.Tensor:
        words = torch.randint(dictionary.nspecial, len(dictionary), (length - 1,), generator=generator)
        return torch.cat([words, torch.tensor([dictionary.eos()])])

    lengths = zip((18, 5, 9, 14, 7, 11, 3, 16), (6, 4, 9, 3, 7, 5, 2, 8))
    pairs = [{"id": 10 + i, "source": sentence(s), "target": sentence(t)} for i, (s, t) in enumerate(lengths)]
    samples, start = [], 0
    for size in split:
        samples.append(collate(pairs[start : start + size], dictionary.pad(), dictionary.eos()))
        start += size
    return samples
