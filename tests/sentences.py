"""Classification in small: a task without data, a model with a head, batches as fairseq's task makes them."""

import argparse
import functools
from typing import Any, Dict, Sequence

import torch
from factories import build_dictionary, build_model, pad_rows, undecide
from training import PlainOptimizer, Training, build_criterion

HEAD = "sentence_classification_head"
LENGTHS = (18, 5, 9, 14, 7, 11, 3, 16)


def build_classifier(arch: str = "switchable_bart_base", classes: int = 3, **overrides: Any):
    """A tiny model in eval mode with a head large enough to show every difference."""
    model = build_model(arch, **{"pooler_activation_fn": "tanh", "pooler_dropout": 0.0, **overrides})
    model.register_classification_head(HEAD, num_classes=classes)
    for parameter in model.classification_heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def build_sentences(lengths: Sequence[int] = LENGTHS, ends: Any = None, target_size: int = 1) -> Dict[str, Any]:
    """A right-padded batch; decoder input is the source with its last symbol first.

    Args:
        lengths: tokens of each row, all its end-of-sentence symbols included.
        ends: end-of-sentence symbols of each row; None = one each.
        target_size: 1 = classes 0..2 in turn.
    """
    dictionary = build_dictionary()
    generator = torch.Generator().manual_seed(5)
    rows = []
    for row, length in enumerate(lengths):
        tokens = torch.randint(dictionary.nspecial, len(dictionary), (length,), generator=generator)
        count = 1 if ends is None else ends[row]
        tokens[torch.linspace(length - 1, length // 2, count).long()] = dictionary.eos()
        rows.append(tokens)
    rolled = [torch.roll(row, 1) for row in rows]
    pad = functools.partial(pad_rows, padding=dictionary.pad(), side="right")
    return {
        "id": torch.arange(10, 10 + len(rows)),
        "net_input": {
            "src_tokens": pad(rows),
            "src_lengths": torch.tensor(list(lengths)),
            "prev_output_tokens": pad(rolled),
        },
        "target": torch.arange(len(rows)).remainder(3).view(-1, target_size),
        "ntokens": sum(lengths),
        "nsentences": len(rows),
    }


def pick_sentences(sample: Dict[str, Any], rows: Sequence[int]) -> Dict[str, Any]:
    """Some rows of a batch, without the padding that only the others need."""
    index = torch.tensor(list(rows))
    width = int(sample["net_input"]["src_lengths"][index].max())
    net_input = {key: value.index_select(0, index) for key, value in sample["net_input"].items()}
    net_input = {key: value[:, :width] if value.dim() == 2 else value for key, value in net_input.items()}
    tokens = int(net_input["src_lengths"].sum())
    picked = {"id": sample["id"][index], "target": sample["target"][index], "net_input": net_input}
    return {**picked, "ntokens": tokens, "nsentences": len(index)}


def build_sentence_task(**options: Any):
    """The task without data: three labels, :func:`factories.build_dictionary`."""
    from fairseq.data import Dictionary

    from sd_fairseq.plugin.tasks.switchable_sentence_prediction import (
        SwitchableSentencePredictionConfig,
        SwitchableSentencePredictionTask,
    )

    labels = Dictionary()
    for name in ("no", "perhaps", "yes"):
        labels.add_symbol(name)
    cfg = argparse.Namespace(**{**vars(SwitchableSentencePredictionConfig(num_classes=3)), **options})
    return SwitchableSentencePredictionTask(cfg, build_dictionary(), labels)


def build_sentence_training(task_options: Any = None, model_options: Any = None, **criterion_options: Any) -> Training:
    """A classifier with mixed deployed paths, its task, the criterion and an optimizer; always the same weights."""
    torch.manual_seed(7)
    model = build_classifier(**(model_options or {}))
    undecide(model)
    task = build_sentence_task(**(task_options or {}))
    return Training(task, model, build_criterion(task, **criterion_options), PlainOptimizer(model))
