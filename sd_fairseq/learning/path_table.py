"""Fits a policy to a table of searched paths: the exact gradient of its expected cost, nothing is sampled.

Algorithm 1 estimates the policy's gradient from a path or two for each example of a batch. Here each of K paths is
scored once on each of N examples; of a policy that is restricted to these paths the expected cost (loss + price x
FLOPs, what Eq. 7 descends at a multiplier that stands still) is then a closed form, whose gradient has no noise but the
examples'. The backbone stands still meanwhile.

Choice: early stopping on examples apart, and a small weight on the probability of the paths outside the table, so
that the policy's mode path is one of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Callable, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_fairseq.decision.policy import PolicyDistribution


@dataclass(frozen=True)
class PathTable:
    """K paths scored on N examples.

    Args:
        keep: BoolTensor [K, num_switches], True = keep.
        token_choice: LongTensor [K], index of the token strategy.
        loss: float64 [K, N], mean token NLL in nats.
        flops: float64 [K, N], relative FLOPs.
        states: float32 [N, C], the policy's input.
    """

    keep: Tensor
    token_choice: Tensor
    loss: Tensor
    flops: Tensor
    states: Tensor

    def __len__(self) -> int:
        return self.loss.size(1)

    def take(self, examples: Tensor) -> "PathTable":
        """Returns the table of some examples, LongTensor [N']."""
        return PathTable(
            self.keep, self.token_choice, self.loss[:, examples], self.flops[:, examples], self.states[examples]
        )

    def cost(self, price: float) -> Tensor:
        """Returns loss + price x FLOPs, float64 [K, N]."""
        return self.loss + price * self.flops

    def cheapest(self, price: float) -> int:
        """Returns the path with the lowest mean cost."""
        return int(self.cost(price).mean(dim=1).argmin())


@dataclass(frozen=True)
class FitSettings:
    """How a policy is fitted.

    Args:
        epochs: over the examples, at most: the weights of the best epoch on the examples apart count.
        batch: examples of a step.
        learning_rate, weight_decay: of AdamW.
        outside: weight (nats of loss) of - log P(paths of the table).
        seed: of the examples' order.
    """

    epochs: int = 100
    batch: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    outside: float = 0.005
    seed: int = 1


def path_log_probs(distribution: PolicyDistribution, keep: Tensor, token_choice: Tensor) -> Tensor:
    """Returns log pi of every path for every example, float32 [B, K] (the logarithm of Eq. 2 times Eq. 3).

    Args:
        distribution: of B examples.
        keep: BoolTensor [K, num_switches].
        token_choice: LongTensor [K].
    """
    logits = distribution.keep_logits
    kept, skipped = keep.t().to(logits), (~keep).t().to(logits)
    switches = F.logsigmoid(logits) @ kept + F.logsigmoid(-logits) @ skipped
    return switches + torch.log_softmax(distribution.token_logits, dim=-1)[:, token_choice]


@torch.no_grad()
def choose(network: nn.Module, table: PathTable) -> Tensor:
    """Returns the most probable path of the table for each example, LongTensor [N]."""
    return path_log_probs(network([table.states]), table.keep, table.token_choice).argmax(dim=1)


def chosen_scores(table: PathTable, chosen: Tensor) -> Tuple[Tensor, Tensor]:
    """Returns loss and FLOPs, float64 [N] each, of a path for each example, LongTensor [N]."""
    rows = chosen.unsqueeze(0)
    return table.loss.gather(0, rows).squeeze(0), table.flops.gather(0, rows).squeeze(0)


def fit_policy(network: nn.Module, table: PathTable, apart: PathTable, price: float, settings: FitSettings) -> int:
    """Trains a policy network on a table, in place.

    Args:
        network: a policy of one stage, such as :class:`~sd_fairseq.decision.policy.PolicyNetwork`.
        table: examples to learn from.
        apart: examples that tell when to stop.
        price: nats that all of an example's FLOPs are worth.
        settings: of the fit.

    Returns:
        The epoch whose weights it has now; 0 = as it came, nothing learned helped the examples apart.
    """
    cost = table.cost(price)
    cost = (cost - cost.mean(dim=0, keepdim=True)).t().float()  # [N, K]
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    generator = torch.Generator().manual_seed(settings.seed)
    best_cost, best_epoch, best = float("inf"), 0, network.state_dict()
    for epoch in range(settings.epochs + 1):
        loss, flops = chosen_scores(apart, choose(network, apart))
        mean = float((loss + price * flops).mean())
        if mean < best_cost:
            best_cost, best_epoch, best = mean, epoch, copy.deepcopy(network.state_dict())
        for rows in torch.randperm(len(table), generator=generator).split(settings.batch):
            log_probs = path_log_probs(network([table.states[rows]]), table.keep, table.token_choice)  # [B, K]
            inside = torch.logsumexp(log_probs, dim=1, keepdim=True)
            expected = ((log_probs - inside).exp() * cost[rows]).sum(dim=1).mean()
            optimizer.zero_grad()
            (expected - settings.outside * inside.mean()).backward()
            optimizer.step()
    network.load_state_dict(best)
    return best_epoch


def folds(count: int, number: int, seed: int) -> List[Tensor]:
    """Splits 0 .. count - 1 at random into parts of as many, LongTensors."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [order[part::number] for part in range(number)]


def cross_fit(
    build: Callable[[int], nn.Module], table: PathTable, price: float, settings: FitSettings, number: int = 10
) -> Tensor:
    """Chooses a path for each example by a policy that was fitted on others, LongTensor [N].

    Args:
        build: makes a fresh policy that decides as the given path of the table.
        table, price, settings: as for :func:`fit_policy`.
        number: of folds; of the others two tell when to stop.
    """
    parts = folds(len(table), number, settings.seed)
    chosen = torch.zeros(len(table), dtype=torch.long)
    for place, part in enumerate(parts):
        others = parts[place + 1 :] + parts[:place]
        apart, fitted = table.take(torch.cat(others[:2])), table.take(torch.cat(others[2:]))
        network = build(fitted.cheapest(price))
        fit_policy(network, fitted, apart, price, settings)
        chosen[part] = choose(network, table.take(part))
    return chosen
