"""Gradient estimates for the policy: score function with a self-critical baseline (section 3.2, "Optimization")."""

from __future__ import annotations

from typing import List, Sequence

import torch
from torch import Tensor


def self_critical_advantage(sampled: Tensor, baseline: Tensor, same_path: Tensor) -> Tensor:
    """Returns q(sample) - q(mode), float32 [B]; positive = the sampled path is worse.

    Args:
        sampled, baseline: [B] mean token NLL (nats) of the sampled and of the mode path.
        same_path: BoolTensor [B], True where both are one path: the advantage is 0 there whatever dropout did.
    """
    return (sampled.float() - baseline.float()).masked_fill(same_path, 0.0)


def leave_one_out_advantages(qualities: Tensor) -> Tensor:
    """Returns q_k - mean of the other samples' q, float32 [K, B]; positive = sample k is worse than the others.

    Args:
        qualities: [K, B] of K >= 2 paths sampled for each example.
    """
    values = qualities.float()
    count = values.size(0)
    return (values - values.mean(dim=0, keepdim=True)) * (count / (count - 1))


def score_function_objective(advantage: Tensor, log_prob: Tensor) -> Tensor:
    """Returns sum_i advantage_i * log pi(sample_i); its gradient is the score-function estimate (REINFORCE)."""
    return (advantage.detach() * log_prob).sum()


def flat_gradient(objective: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False) -> Tensor:
    """Returns d objective / d parameters as one float32 vector; zeros where a parameter takes no part."""
    grads = torch.autograd.grad(objective, list(parameters), retain_graph=retain_graph, allow_unused=True)
    pieces: List[Tensor] = [
        torch.zeros_like(parameter).reshape(-1) if grad is None else grad.reshape(-1)
        for parameter, grad in zip(parameters, grads)
    ]
    return torch.cat(pieces).float()
