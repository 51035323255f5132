"""A training that goes on in a later epoch keeps the batches that it began with.

fairseq makes the batches once, from an order that is drawn by the seed and the epoch it starts in, and shuffles them
anew in every epoch. Started again in epoch 3 it draws by 3, so sentences of one length meet others than before, and a
training that was stopped ends elsewhere than one that was not.
"""

from __future__ import annotations

from typing import Any, Callable


def keep_first_batches(task: Any, make: Callable[..., Any], dataset: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns fairseq's iterator over a training set, its batches drawn as those of epoch 1.

    Args:
        task: fairseq task.
        make: its own ``get_batch_iterator``.
        dataset: to be trained on.
        args, kwargs: as ``make`` takes them.
    """
    epoch = kwargs.get("epoch", 1)
    known = task.dataset_to_epoch_iter.get(dataset)
    anew = kwargs.get("disable_iterator_cache") or kwargs.get("update_epoch_batch_itr") or len(args) > 0
    if epoch <= 1 or anew or getattr(task.cfg, "rebuild_batches", False) or not task.can_reuse_epoch_itr(dataset):
        return make(dataset, *args, **kwargs)
    iterator = make(dataset, *args, **{**kwargs, "epoch": 1})
    if iterator is not known:
        dataset.set_epoch(epoch)
        iterator.epoch = epoch
    return iterator
