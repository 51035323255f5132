"""Scores paths on a fixed list of examples, teacher-forced: the loss and the FLOPs of each example on each path."""

from __future__ import annotations

import itertools
import os
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import data_utils
from torch import Tensor

from sd_fairseq.cost.path_flops import Lengths, dense_flops, relative_flops
from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.plugin.criterions.quality import mean_over, token_nll
from sd_fairseq.plugin.guards.dictionaries import check_dictionaries
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.loading import loading
from sd_fairseq.plugin.guards.preflight import check_checkpoint
from sd_fairseq.plugin.models.conversion import overrides_for, read_overrides

Key = Tuple[Tuple[bool, ...], int]  # kept switches, token strategy
ENCODER_PATHS = 2  # whose outputs are kept: a search's present path, and the one it tries


class Scores(NamedTuple):
    """One path on every example.

    Args:
        loss: float64 [N], mean token NLL in nats.
        halves: float64 [2, N], the same over even and over odd target positions.
        flops: float64 [N], relative FLOPs of generation.
    """

    loss: Tensor
    halves: Tensor
    flops: Tensor


class Scorer:
    """Scores paths on a fixed list of examples.

    Args:
        model: a switchable model, dropout off.
        batches: fairseq's batches.
        padding: index of the padding symbol.
        beam: beam size that FLOPs are counted for.
        task: fairseq's, where something is generated.
    """

    def __init__(self, model: Any, batches: Sequence[Dict[str, Any]], padding: int, beam: int, task: Any = None):
        self.model, self.batches, self.padding, self.beam, self.task = model, batches, padding, beam, task
        self.known: Dict[Key, Scores] = {}
        self._encoded: Dict[Any, Dict[int, Any]] = {}  # the encoder's part of a path -> batch -> what it gave

    def score(self, key: Key) -> Scores:
        """Scores one path for all examples; each path once."""
        if key not in self.known:
            self.known[key] = self._run(lambda place, sample: self._run_along(key, place, sample))[0]
        return self.known[key]

    def score_policy(self) -> Tuple[Scores, List[Decisions]]:
        """Scores the paths that the model's own policy decides."""
        return self._run(lambda _, sample: self.model(**sample["net_input"], path=PathRequest("mode")))

    def _run_along(self, key: Key, place: int, sample: Dict[str, Any]) -> Tuple[Tensor, Dict[str, Any]]:
        """Runs a batch along one path; as a model's forward method.

        Paths that differ in the decoder only share what the encoder gives: of the last two of its paths it is kept.
        """
        space, inputs, count = self.model.space, sample["net_input"], sample["target"].size(0)
        keep, choice = torch.tensor([key[0]], dtype=torch.bool), torch.tensor([key[1]])
        decisions = space.to_decisions(keep.expand(count, -1), choice.expand(count)).to(self.device)
        request = PathRequest(decisions=decisions)
        if space.tied:  # both stacks are the same layers
            return self.model(**inputs, path=request)
        part = encoder_part(space, key)
        encoded = self._encoded.pop(part, {})
        self._encoded[part] = encoded  # the latest is the last
        if len(self._encoded) > ENCODER_PATHS:
            del self._encoded[next(iter(self._encoded))]
        if place not in encoded:
            encoded[place] = self.model.encoder(inputs["src_tokens"], inputs["src_lengths"], path=request)
        source = {**encoded[place], "decisions": [decisions]}
        logits, extra = self.model.decoder(inputs["prev_output_tokens"], encoder_out=source)
        return logits, {**extra, "decisions": decisions}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def source_lengths(self) -> Tensor:
        """LongTensor [N], end of sentence included."""
        rows = [sample["net_input"]["src_tokens"].ne(self.padding).sum(dim=1) for sample in self.batches]
        return torch.cat(rows).cpu()

    @property
    def dense_flops(self) -> Tensor:
        """FLOPs of each example's dense path, generation, float64 [N]."""
        model = self.model
        found = [dense_flops("generation", model.shape, model.space, self._lengths(batch)) for batch in self.batches]
        return torch.cat(found).double().cpu()

    def _lengths(self, sample: Dict[str, Any]) -> Lengths:
        source, target = sample["net_input"]["src_tokens"], sample["target"]
        return Lengths(source.ne(self.padding).sum(1), target.ne(self.padding).sum(1), self.beam)

    @torch.no_grad()
    def _run(self, run: Callable[[int, Dict[str, Any]], Any]) -> Tuple[Scores, List[Decisions]]:
        pieces, decisions = [], []
        for place, sample in enumerate(self.batches):
            target = sample["target"]  # [B, T]
            output = run(place, sample)
            log_probs = self.model.get_normalized_probs(output, log_probs=True)  # [B, T, V]
            nll = token_nll(log_probs, target).double()  # [B, T]
            real = target.ne(self.padding)
            lengths = self._lengths(sample)
            taken = output[1]["decisions"]
            flops = relative_flops("generation", self.model.shape, self.model.space, taken, lengths)
            even = torch.arange(target.size(1), device=target.device) % 2 == 0
            halves = torch.stack([mean_over(nll, real & even), mean_over(nll, real & ~even)])
            pieces.append((mean_over(nll, real), halves, flops))
            decisions.append(taken)
        losses, halves, flops = zip(*pieces)
        return Scores(torch.cat(losses).cpu(), torch.cat(halves, dim=1).cpu(), torch.cat(flops).cpu()), decisions


def encoder_part(space: Any, key: Key) -> Key:
    """Returns what a path decides for the encoder: its switches and the token strategy."""
    return tuple(kept for kept, (site, _) in zip(key[0], space.switches) if site.startswith("encoder")), key[1]


def spread(sizes: Sequence[int], examples: int) -> int:
    """Returns the largest n for which every n-th batch still makes up so many examples; 0 examples = all.

    Args:
        sizes: examples of each batch.
        examples: how many are wanted.
    """
    wanted = examples or sum(sizes)
    return max((n for n in range(1, len(sizes) + 1) if sum(sizes[::n]) >= wanted), default=1)


def sample_evenly(count: int, wanted: int) -> List[int]:
    """Returns ``wanted`` places of 0 to count - 1, evenly spread, or all where that is 0 or more than there are."""
    taken = min(wanted, count) if wanted > 0 else count
    return [(2 * place + 1) * count // (2 * taken) for place in range(taken)]


def take_examples(model: Any, task: Any, args: Any) -> List[Dict[str, Any]]:
    """Returns batches of ``args.examples`` pairs that are evenly spread over the split's pairs sorted by length.

    Raises:
        InputError: no pair that the model takes, or one that is longer than a batch may be.
    """
    dataset = task.dataset(args.gen_subset)
    with data_utils.numpy_seed(1):  # where pairs are as long as each other their order is drawn
        order = dataset.ordered_indices()
    order = task.filter_indices_by_size(order, dataset, model.max_positions(), ignore_invalid_inputs=True)
    check_some(order, model, args)
    chosen = order[sample_evenly(len(order), args.examples)]
    check_batches(dataset, chosen, args.max_tokens)
    return [
        dataset.collater([dataset[place] for place in places])
        for places in dataset.batch_by_size(chosen, max_tokens=args.max_tokens)
    ]


def check_batches(dataset: Any, places: Sequence[Any], max_tokens: int) -> None:
    """Refuses pairs that are longer than a batch may be.

    Raises:
        InputError: naming the longest.
    """
    longest = max((dataset.num_tokens(place) for place in places), default=0)
    if longest > max_tokens:
        raise InputError(f"--max-tokens {max_tokens}: the longest of the pairs has {longest}")


def check_some(pairs: Sequence[Any], model: Any, args: Any) -> None:
    """Refuses an empty split.

    Raises:
        InputError: there is no pair.
    """
    if not len(pairs):
        raise InputError(
            f"no pair of {args.gen_subset!r} is short enough for the model: {model.max_positions()} tokens"
        )


def load_model(args: Any) -> Tuple[Any, Any]:
    """Loads a model and its task with a split.

    Args:
        args: with path, model_overrides, data, gen_subset and cuda.

    Raises:
        InputError: an unreadable checkpoint, or a folder without dictionaries.
    """
    check_checkpoint(args.path, "--path")
    read_overrides(args.model_overrides)
    check_dictionaries(os.fspath(args.data).split(os.pathsep)[0])
    overrides = overrides_for(args.path, args.model_overrides, args.data)
    with loading(args.path, "--path"):
        models, _, task = checkpoint_utils.load_model_ensemble_and_task([args.path], arg_overrides=overrides)
    task.load_dataset(args.gen_subset)
    return models[0].cuda() if args.cuda else models[0], task


def load_batches(args: Any) -> Tuple[Any, Any, List[Dict[str, Any]]]:
    """Loads a model, its task and all batches of a split, sorted by length.

    Args:
        args: as for :func:`load_model`, and max_tokens.

    Raises:
        InputError: an unreadable checkpoint, or no pair that the model takes.
    """
    model, task = load_model(args)
    batches = all_batches(model, task, args)
    return model, task, batches


def all_batches(model: Any, task: Any, args: Any) -> List[Dict[str, Any]]:
    """Returns all batches of a loaded split, sorted by length.

    Raises:
        InputError: no pair that the model takes, or one that is longer than a batch may be.
    """
    dataset = task.dataset(args.gen_subset)
    order = task.filter_indices_by_size(
        dataset.ordered_indices(), dataset, model.max_positions(), ignore_invalid_inputs=True
    )
    check_some(order, model, args)
    check_batches(dataset, order, args.max_tokens)
    iterator = task.get_batch_iterator(
        dataset,
        max_tokens=args.max_tokens,
        max_positions=model.max_positions(),
        ignore_invalid_inputs=True,  # as in training: fairseq warns and leaves out what is too long
    ).next_epoch_itr(shuffle=False)
    return list(iterator)


def load(args: Any) -> Scorer:
    """Loads model and examples.

    Args:
        args: the options of ``path_search``: with ``--sample batches`` or ``--every`` whole batches are taken.

    Raises:
        InputError: a checkpoint without decisions, or an unreadable one.
    """
    model, task = load_model(args)
    model.eval()
    if not hasattr(model, "space"):
        raise InputError(f"{args.path} holds a {type(model).__name__}, expected a switchable_bart")
    if args.sample == "examples" and args.every == 0:
        batches = take_examples(model, task, args)
    elif args.every == 0:
        batches = all_batches(model, task, args)
        batches = batches[:: spread([batch["target"].size(0) for batch in batches], args.examples)]
    else:
        batches = all_batches(model, task, args)[:: args.every]
        sizes = itertools.accumulate(batch["target"].size(0) for batch in batches)
        batches = batches[: 1 + sum(size < args.examples for size in sizes) if args.examples else None]
    batches = [utils.move_to_cuda(batch) for batch in batches] if args.cuda else batches
    return Scorer(model, batches, task.target_dictionary.pad(), args.beam, task)
