"""A training set has the same batches, whatever epoch its iterator is made in; their order is each epoch's own."""

import pytest
import torch

pytest.importorskip("fairseq")
from fairseq.data import Dictionary, LanguagePairDataset  # noqa: E402
from fairseq.tasks.translation import TranslationTask  # noqa: E402

from sd_fairseq.plugin.tasks.switchable_translation import (  # noqa: E402
    SwitchableTranslationConfig,
    SwitchableTranslationTask,
)


def iterator(kind, epoch, split="train"):
    dictionary = Dictionary()
    task = kind(SwitchableTranslationConfig(), dictionary, dictionary)
    pairs = [torch.tensor([5, 6, 2])] * 40  # of one length: only the draw decides which meet
    task.datasets[split] = LanguagePairDataset(pairs, [3] * 40, dictionary, pairs, [3] * 40, dictionary)
    made = task.get_batch_iterator(task.datasets[split], max_sentences=4, seed=1, epoch=epoch)
    return made, [list(map(int, batch)) for batch in made.frozen_batches]


def test_batches_are_those_of_the_first_epoch():
    first, batches = iterator(SwitchableTranslationTask, 1)
    later, same = iterator(SwitchableTranslationTask, 3)
    assert same == batches
    assert (first.epoch, later.epoch, later.next_epoch_idx) == (1, 3, 3)
    assert iterator(TranslationTask, 3)[1] != batches  # what is mended
    state = {"epoch": 3, "iterations_in_epoch": 4, "shuffle": True, "version": 2}
    first.load_state_dict(state)
    later.load_state_dict(state)
    orders = [[batch["id"].tolist() for batch in one.next_epoch_itr()] for one in (first, later)]
    assert orders[0] == orders[1] and len(orders[0]) == 6
