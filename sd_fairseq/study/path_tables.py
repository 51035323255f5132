"""Tables of searched paths: which paths stand in them, their scores, and the file that holds them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields, replace
from typing import List

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.learning.path_table import PathTable
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.study.path_scorer import Key, Scorer
from sd_fairseq.user_files import open_input
from sd_fairseq.whole_files import write_with

BAND = 0.15  # relative FLOPs; paths of the table cost at most so much more or less than is aimed at


@dataclass(frozen=True)
class ScoredPaths:
    """K paths scored on N examples, and what does not depend on the path.

    Args:
        keep: BoolTensor [K, num_switches], True = keep.
        token_choice: LongTensor [K].
        loss: float64 [K, N], mean token NLL in nats.
        flops: float64 [K, N], of each example's own dense path.
        states: float32 [N, C], the policy's input.
        dense_loss: float64 [N].
        dense_flops: float64 [N], FLOPs of each example's dense path.
        searched: LongTensor [], examples of the search that found the paths.
    """

    keep: Tensor
    token_choice: Tensor
    loss: Tensor
    flops: Tensor
    states: Tensor
    dense_loss: Tensor
    dense_flops: Tensor
    searched: Tensor

    def to_table(self, weights: Tensor) -> PathTable:
        """Returns the table whose mean FLOPs count the examples so much, float64 [N], 1 on average."""
        return PathTable(self.keep, self.token_choice, self.loss, self.flops * weights, self.states)

    def weights(self, average: str) -> Tensor:
        """Returns what each example counts in the mean FLOPs; see :func:`example_weights`."""
        return example_weights(self.dense_flops, average)


def example_weights(dense_flops: Tensor, average: str) -> Tensor:
    """Returns what each example's relative FLOPs count in their mean, float64 [N], 1 on average.

    Args:
        dense_flops: float64 [N], FLOPs of each example's dense path.
        average: "examples" (all alike, as training counts them) or "corpus" (by their dense FLOPs: the mean is then
            the share of all examples' FLOPs together, which is what time is paid for).
    """
    return dense_flops / dense_flops.mean() if average == "corpus" else torch.ones_like(dense_flops)


def candidate_paths(scorer: Scorer, chain: List[Key], flops: float, number: int, weights: Tensor) -> List[Key]:
    """Returns paths that a search has scored and that cost about what is aimed at.

    Args:
        scorer: after the search.
        chain: what the search returned; its paths stand in the table, too.
        flops: mean relative FLOPs aimed at.
        number: of the best paths beside the chain, by loss + price x FLOPs, at the price at which the best path
            costs what is aimed at.
        weights: of the examples in the mean FLOPs, [N].

    Raises:
        InputError: no path is near them.
    """
    keys = list(scorer.known)
    losses = torch.stack([scorer.known[key].loss.mean() for key in keys])
    costs = torch.stack([(scorer.known[key].flops * weights).mean() for key in keys])
    price = static_price(losses, costs, flops)
    near = ((costs - flops).abs() <= BAND).nonzero().view(-1)
    if not len(near):
        raise InputError(f"no searched path costs {flops} of the FLOPs, plus or minus {BAND}")
    order = near[(losses + price * costs)[near].argsort(stable=True)].tolist()
    best = [keys[place] for place in order[:number]]
    return best + [keys[place] for place in order[number:] if keys[place] in chain]


def static_price(losses: Tensor, costs: Tensor, flops: float) -> float:
    """Returns the price of FLOPs at which the best of some paths costs ``flops`` or just less.

    Args:
        losses, costs: [paths], means over the examples.
        flops: relative FLOPs.
    """
    low, high = 0.0, 100.0
    for _ in range(40):
        price = (low + high) / 2
        low, high = (price, high) if float(costs[(losses + price * costs).argmin()]) > flops else (low, price)
    return high


@torch.no_grad()
def policy_states(scorer: Scorer) -> Tensor:
    """Returns what the model's policy reads of each example, float32 [N, width]."""
    sources = [sample["net_input"]["src_tokens"] for sample in scorer.batches]
    states = [scorer.model.encoder(source, path=PathRequest("dense"))["policy_states"][0] for source in sources]
    return torch.cat(states).float().cpu()


@torch.no_grad()
def score_paths(scorer: Scorer, keys: List[Key], searched: int) -> ScoredPaths:
    """Scores paths on all examples.

    Args:
        scorer: of the examples.
        keys: the paths.
        searched: examples of the search that found them.
    """
    scores = [scorer.score(key) for key in tqdm(keys, desc="table", unit=" paths", disable=None)]
    return ScoredPaths(
        keep=torch.tensor([key[0] for key in keys], dtype=torch.bool),
        token_choice=torch.tensor([key[1] for key in keys]),
        loss=torch.stack([one.loss for one in scores]),
        flops=torch.stack([one.flops for one in scores]),
        states=policy_states(scorer),
        dense_loss=scorer.score(((True,) * scorer.model.space.num_switches, 0)).loss,
        dense_flops=scorer.dense_flops,
        searched=torch.tensor(searched),
    )


def write_scored(path: str, scored: ScoredPaths) -> None:
    """Writes a table beside its place, then renames.

    Raises:
        InputError: it cannot be written.
    """
    values = {name: value.numpy() for name, value in vars(scored).items()}
    write_with(path, lambda stream: np.savez(stream, **values))


def read_scored(path: str, scorer: Scorer) -> ScoredPaths:
    """Reads a table that was made of the same examples, in the same decision space.

    What the policy reads is made again where it differs (another ``--sd-policy-input``).

    Args:
        path: file of :func:`write_scored`.
        scorer: of the model and the examples.

    Raises:
        InputError: unreadable, another file, other examples or another space.
    """
    names = [field.name for field in fields(ScoredPaths)]
    try:
        with open_input(path) as stream, np.load(stream, allow_pickle=False) as content:
            scored = ScoredPaths(**{name: torch.from_numpy(content[name]) for name in names})
    except (ValueError, KeyError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a table of paths, expected {', '.join(names)}") from error
    if not torch.equal(scored.dense_flops, scorer.dense_flops):
        count = scored.dense_flops.numel()
        raise InputError(f"{path}: made of {count} examples that are not the {len(scorer.source_lengths)} of this data")
    if scored.keep.size(1) != scorer.model.space.num_switches:
        raise InputError(
            f"{path}: paths of {scored.keep.size(1)} switches, the model has {scorer.model.space.num_switches}"
        )
    if scored.states.size(1) != scorer.model.encoder.policy.hidden.in_features:
        return replace(scored, states=policy_states(scorer))
    return scored
