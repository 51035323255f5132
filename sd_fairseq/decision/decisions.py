"""What may be skipped (DecisionSpace) and what one batch of examples skips (Decisions): section 3.1.

Choice: decoder ATT is self-attention and cross-attention together, which is what the paper's Tables 5 and 10 add up
to; ``cross_attention_apart`` makes cross-attention a switch of its own.
Choice: the ATT of one decoder layer (the last by default) is outside the space and always runs, because a decoder
that skips every cross-attention cannot see its source.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Dict, Iterable, List, Sequence, Tuple

import torch
from torch import Tensor

from sd_fairseq.decision.token_strategies import DEFAULT_TOKEN_STRATEGIES, TokenStrategy, parse_token_strategies

PARTS = ("encoder", "decoder", "token")
SITES = ("encoder_attention", "encoder_ffn", "decoder_attention", "decoder_cross_attention", "decoder_ffn")


@dataclass(frozen=True)
class Decisions:
    """One path per example; True = keep, everywhere.

    Args:
        encoder_attention, encoder_ffn: BoolTensor [B, L] over the encoder's layers.
        decoder_attention: BoolTensor [B, L], self-attention of the decoder's layers.
        decoder_cross_attention: BoolTensor [B, L]; equals ``decoder_attention`` unless the space sets it apart.
        decoder_ffn: BoolTensor [B, L].
        token_choice: LongTensor [B], index of the token strategy.
    """

    encoder_attention: Tensor
    encoder_ffn: Tensor
    decoder_attention: Tensor
    decoder_cross_attention: Tensor
    decoder_ffn: Tensor
    token_choice: Tensor

    def __len__(self) -> int:
        return self.token_choice.size(0)

    def index_select(self, order: Tensor) -> "Decisions":
        """Returns the decisions of the rows ``order`` (LongTensor [B']), as a beam search needs them."""
        return Decisions(*(value.index_select(0, order) for value in self._values()))

    def to(self, device: torch.device) -> "Decisions":
        """Returns the same decisions on ``device``."""
        return Decisions(*(value.to(device) for value in self._values()))

    def same_path(self, other: "Decisions") -> Tensor:
        """Returns BoolTensor [B]: True where both take the same path."""
        same = self.token_choice == other.token_choice
        for mine, theirs in zip(self._values()[:-1], other._values()[:-1]):
            same = same & (mine == theirs).all(dim=1)
        return same

    def count_distinct_paths(self) -> int:
        """Counts the different paths among the examples; 1 means that the policy has collapsed to a static path."""
        rows = torch.cat([value.long() for value in self._values()[:-1]] + [self.token_choice.unsqueeze(1)], dim=1)
        return int(torch.unique(rows, dim=0).size(0))

    def _values(self) -> List[Tensor]:
        return [getattr(self, item.name) for item in fields(self)]


@dataclass(frozen=True)
class DecisionSpace:
    """The switchable sub-layers and token strategies, and their order in the policy's output.

    Args:
        encoder_layers, decoder_layers: layers of each stack.
        switches: (site, layer from 0) of every switchable sub-layer, in the order of the policy's outputs.
        token_strategies: the J strategies; only ``keep`` when tokens are not switched.
        cross_attention_apart: True = decoder cross-attention has switches of its own.
        tied: True = encoder and decoder are the same layers (a decoder-only model reads its prompt and writes its
            answer with them), so an encoder switch drives the decoder's sub-layer, too.
    """

    encoder_layers: int
    decoder_layers: int
    switches: Tuple[Tuple[str, int], ...]
    token_strategies: Tuple[TokenStrategy, ...]
    cross_attention_apart: bool = False
    tied: bool = False

    @classmethod
    def build(
        cls,
        encoder_layers: int,
        decoder_layers: int,
        parts: Iterable[str] = PARTS,
        first_encoder_layer: int = 2,
        first_decoder_layer: int = 1,
        always_run_attention: int = -1,
        cross_attention_apart: bool = False,
        token_strategies: str = DEFAULT_TOKEN_STRATEGIES,
        tied: bool = False,
        spared: int = 0,
    ) -> "DecisionSpace":
        """Builds the space from what a user says.

        Args:
            encoder_layers, decoder_layers: layers of each stack.
            parts: any of ``encoder``, ``decoder``, ``token`` (the paper's Table 7).
            first_encoder_layer, first_decoder_layer: first switchable layer, counted from 1. The encoder's layer 1
                always runs because the policy reads its output.
            always_run_attention: decoder layer (from 1; -1 = the last) whose ATT always runs.
            cross_attention_apart: see the class.
            token_strategies, spared: see :func:`parse_token_strategies`.
            tied: see the class; the decoder's own arguments count for nothing then.

        Raises:
            ValueError: an unknown part, a layer that does not exist, or a space with nothing to switch.
        """
        parts = tuple(parts)
        unknown = [part for part in parts if part not in PARTS]
        if unknown or not parts:
            raise ValueError(f"decision space {','.join(parts)!r} is not a choice of {','.join(PARTS)}")
        if not 2 <= first_encoder_layer <= encoder_layers + 1:
            raise ValueError(f"first switchable encoder layer {first_encoder_layer} is not in 2..{encoder_layers + 1}")
        if not 1 <= first_decoder_layer <= decoder_layers + 1:
            raise ValueError(f"first switchable decoder layer {first_decoder_layer} is not in 1..{decoder_layers + 1}")
        if always_run_attention != -1 and not 1 <= always_run_attention <= decoder_layers:
            raise ValueError(f"always-run decoder attention {always_run_attention} is not -1 or 1..{decoder_layers}")
        always = (decoder_layers if always_run_attention == -1 else always_run_attention) - 1
        switches: List[Tuple[str, int]] = []
        if "encoder" in parts or (tied and "decoder" in parts):
            for layer in range(first_encoder_layer - 1, encoder_layers):
                switches += [("encoder_attention", layer), ("encoder_ffn", layer)]
        if "decoder" in parts and not tied:
            for layer in range(first_decoder_layer - 1, decoder_layers):
                if layer != always:
                    switches.append(("decoder_attention", layer))
                    switches += [("decoder_cross_attention", layer)] if cross_attention_apart else []
                switches.append(("decoder_ffn", layer))
        strategies = parse_token_strategies(token_strategies if "token" in parts else "keep", spared)
        if not switches and len(strategies) == 1:
            raise ValueError(f"decision space {','.join(parts)!r} has nothing to switch")
        return cls(encoder_layers, decoder_layers, tuple(switches), strategies, cross_attention_apart, tied)

    @property
    def num_switches(self) -> int:
        return len(self.switches)

    def layers_of(self, site: str) -> int:
        """Returns the number of layers that ``site`` has."""
        return self.encoder_layers if site.startswith("encoder") else self.decoder_layers

    def switch_indices(self, site: str) -> List[Tuple[int, int]]:
        """Lists (policy output, layer) of the switches of ``site``."""
        if self.tied:
            site = "encoder_ffn" if site.endswith("ffn") else "encoder_attention"
        if site == "decoder_cross_attention" and not self.cross_attention_apart:
            site = "decoder_attention"
        return [(index, layer) for index, (name, layer) in enumerate(self.switches) if name == site]

    def always_runs(self, site: str) -> int:
        """Counts the layers of ``site`` that are outside the space."""
        return self.layers_of(site) - len(self.switch_indices(site))

    def to_decisions(self, keep: Tensor, token_choice: Tensor) -> Decisions:
        """Names the policy's flat outputs.

        Args:
            keep: BoolTensor [B, num_switches], True = keep.
            token_choice: LongTensor [B].
        """
        return Decisions(token_choice=token_choice, **self.spread(keep))

    def spread(self, values: Tensor) -> Dict[str, Tensor]:
        """Spreads values of the switches over the layers of every site; 1 (True) where a sub-layer always runs.

        Args:
            values: [B, num_switches].

        Returns:
            site -> [B, L].
        """
        spread = {}
        for site in SITES:
            value = values.new_ones((values.size(0), self.layers_of(site)))  # [B, L]
            pairs = self.switch_indices(site)
            if pairs:
                outputs, layers = zip(*pairs)
                value[:, list(layers)] = values[:, list(outputs)]
            spread[site] = value
        return spread

    def to_keep(self, decisions: Decisions) -> Tensor:
        """Returns BoolTensor [B, num_switches], the inverse of :meth:`to_decisions`."""
        columns = [getattr(decisions, site)[:, layer] for site, layer in self.switches]
        if not columns:
            return torch.ones((len(decisions), 0), dtype=torch.bool, device=decisions.token_choice.device)
        return torch.stack(columns, dim=1)

    def keep_all(self, batch_size: int, device: torch.device) -> Decisions:
        """Returns the dense path for ``batch_size`` examples."""
        keep = torch.ones((batch_size, self.num_switches), dtype=torch.bool, device=device)
        return self.to_decisions(keep, torch.zeros(batch_size, dtype=torch.long, device=device))

    def describe(self, decisions: Decisions, row: int) -> dict:
        """Describes one example's path: '1' kept, '0' skipped, '=' outside the space, one character a layer."""
        described = {}
        for site in SITES:
            switchable = {layer for _, layer in self.switch_indices(site)}
            kept: Sequence[bool] = getattr(decisions, site)[row].tolist()
            described[site] = "".join("=" if i not in switchable else "01"[keep] for i, keep in enumerate(kept))
        described["token_strategy"] = str(self.token_strategies[int(decisions.token_choice[row])])
        return described
