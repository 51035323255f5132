"""A policy that decides layer by layer (Table 11)."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.policy import Float32Module, PolicyDistribution, PolicyNetwork, split_logits


class LayerwisePolicyNetwork(Float32Module):
    """Decides each encoder layer from the output of the layer before it (Table 11).

    Choice: token strategy and encoder layer 2 are decided from layer 1's output, encoder layer l from layer l - 1's,
    and the whole decoder from the last encoder layer's output: a decoder decision must not change between time steps.

    Args: as :class:`PolicyNetwork`.
    """

    def __init__(
        self,
        input_size: int,
        space: DecisionSpace,
        hidden_size: int = 0,
        initial_keep: float = 0.95,
        initial_path: Optional[Decisions] = None,
        inputs: str = "state",
    ):
        super().__init__()
        self.space, self.inputs = space, inputs
        self.networks = nn.ModuleList(
            PolicyNetwork(input_size, space, hidden_size, initial_keep, initial_path, inputs)
            for _ in range(space.encoder_layers)
        )

    def shifts(self) -> List[Tensor]:
        """Lists the shifts of all its networks, to be set alike."""
        return [network.shift for network in self.networks]  # type: ignore[misc]

    @property
    def stages(self) -> Tuple[int, ...]:
        """Encoder layers (from 1) after which the policy is asked: all of them."""
        return tuple(range(1, self.space.encoder_layers + 1))

    def reset_parameters(self) -> None:
        """Makes a fresh policy."""
        for network in self.networks:
            network.reset_parameters()  # type: ignore[operator]

    def stage_of_output(self) -> List[int]:
        """Lists for every policy output the stage that decides it."""
        last = self.space.encoder_layers
        stages = [layer if site.startswith("encoder") else last for site, layer in self.space.switches]
        return stages + [1] * len(self.space.token_strategies)

    def stage_logits(self, stage: int, state: Tensor) -> Tensor:
        """Returns [B, num_switches + J] logits; only the outputs of this stage count."""
        return self.networks[stage - 1].stage_logits(stage, state)  # type: ignore[operator]

    def forward(self, states: Sequence[Tensor]) -> PolicyDistribution:
        """Maps the detached states (one [B, width] a stage) to a distribution over paths."""
        stages = self.stage_of_output()
        every = torch.stack([self.stage_logits(i + 1, state) for i, state in enumerate(states)])  # [stages, B, outputs]
        columns = [every[stage - 1, :, output] for output, stage in enumerate(stages)]
        return split_logits(self.space, torch.stack(columns, dim=1))
