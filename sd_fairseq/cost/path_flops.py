"""FLOPs of an example's whole path, relative to the dense path of the same example.

Two definitions, always reported together:

* ``generation``: what is executed. Encoder once, cached decoding with the real beam, keys and values of
  cross-attention once a sentence, LM head, policy. Where nothing is generated (classification, question answering)
  the decoder runs once over its whole input, without a cache, and a small head takes the LM head's place.
* ``paper``: the only definition under which the paper's own figures come out of its Table 10 (61.0/80.6/80.3 against
  the printed 61.1/80.5/80.7). The decoder is counted over a sequence of the encoder's length, token skipping shortens
  both stacks everywhere, cross-attention belongs to ATT, there is no LM head and no policy.

Choice: the paper says "estimated FLOPs" and defines neither; we optimise and quote ``generation``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor

from sd_fairseq.cost.layer_work import LayerWork, WorkCosts
from sd_fairseq.cost.sublayer_flops import (
    cached_self_attention_flops,
    cross_attention_cache_flops,
    cross_attention_query_flops,
    ffn_flops,
    linear_layers_flops,
    lm_head_flops,
    policy_flops,
    self_attention_flops,
)
from sd_fairseq.decision.decisions import SITES, Decisions, DecisionSpace
from sd_fairseq.decision.policy import PolicyDistribution
from sd_fairseq.decision.token_strategies import count_kept_tokens

DEFINITIONS = ("generation", "paper")


@dataclass(frozen=True)
class HeadShape:
    """A head of linear layers on the decoder's top states.

    Args:
        widths: dimensions from the decoder's C to the outputs: (C, C, classes) to classify, (C, 2) to find a span.
        every_token: True = it reads each of the T decoder tokens; False = one of them.
    """

    widths: Tuple[int, ...]
    every_token: bool = False


@dataclass(frozen=True)
class ModelShape:
    """The dimensions that the closed forms need.

    Args:
        encoder_dim, decoder_dim: C of each stack.
        encoder_ffn_dim, decoder_ffn_dim: F of each stack.
        vocabulary: V.
        policy_hidden, policy_networks: hidden units, and networks asked per example (0 = no policy is run).
        policy_input: figures that a policy reads; 0 = as many as encoder_dim.
        policy_heads: sets of outputs that a network computes, one a knot of a range of budgets.
        head: what reads the decoder where nothing is generated; None = a generator with its LM head.
        attention_dim: A of both stacks, heads times their size; 0 = C of each.
        ffn_products: matrices of a feed-forward sub-layer: 2, with a gate 3.
    """

    encoder_dim: int
    decoder_dim: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    vocabulary: int
    policy_hidden: int = 0
    policy_networks: int = 0
    policy_input: int = 0
    policy_heads: int = 1
    head: Optional[HeadShape] = None
    attention_dim: int = 0
    ffn_products: int = 2

    def encoded_tokens(self, source: Tensor) -> Tensor:
        """Returns how many of a source's tokens the encoder runs."""
        return source

    def encoder_sites(self, tokens: Tensor) -> Dict[str, Tensor]:
        """Costs of one encoder layer's sub-layers over ``tokens``."""
        dim = self.encoder_dim
        return {
            "encoder_attention": self_attention_flops(tokens, dim, self.attention_dim),
            "encoder_ffn": ffn_flops(tokens, dim, self.encoder_ffn_dim, self.ffn_products),
        }

    def decoder_sites_of_paper(self, tokens: Tensor) -> Dict[str, Tensor]:
        """Costs of one decoder layer's sub-layers as the paper counts them, over as many tokens as the encoder's."""
        dim = self.decoder_dim
        return {
            "decoder_attention": self_attention_flops(tokens, dim, self.attention_dim),
            "decoder_cross_attention": self_attention_flops(tokens, dim, self.attention_dim),
            "decoder_ffn": ffn_flops(tokens, dim, self.decoder_ffn_dim, self.ffn_products),
        }

    def decoder_sites(self, target: Tensor, kept: Tensor, beam: int) -> Dict[str, Tensor]:
        """Costs of one decoder layer's sub-layers; arguments as :func:`sublayer_costs` has them."""
        dim, inner = self.decoder_dim, self.attention_dim
        self_attention = cached_self_attention_flops if self.head is None else self_attention_flops
        queries = beam * cross_attention_query_flops(target, kept, dim, inner)
        return {
            "decoder_attention": beam * self_attention(target, dim, inner),
            "decoder_cross_attention": queries + cross_attention_cache_flops(kept, inner or dim, self.encoder_dim),
            "decoder_ffn": beam * ffn_flops(target, dim, self.decoder_ffn_dim, self.ffn_products),
        }

    def first_layer(self, target: Tensor, full: Tensor, kept: Tensor, beam: int) -> Tensor:
        """Costs of encoder layer 1, which sees the whole source, and of whatever else always does."""
        sites = self.encoder_sites(full)
        return sites["encoder_attention"] + sites["encoder_ffn"]


@dataclass(frozen=True)
class Lengths:
    """Lengths of each example, in tokens with their end-of-sentence symbols.

    Args:
        source: LongTensor [B], S.
        target: LongTensor [B], T; in generation the decoder steps executed, else the tokens of the decoder's input.
        beam: hypotheses decoded side by side; without meaning where nothing is generated.
        work: what the decoder's layers ran where that differs from step to step; None = all that the decisions keep.
    """

    source: Tensor
    target: Tensor
    beam: int = 1
    work: Optional[LayerWork] = None


@dataclass(frozen=True)
class SublayerCosts:
    """FLOPs by source strategy: ``site`` [B, J] per layer that keeps it, ``fixed`` [B, J] for what always runs.

    Encoder layer 1 sees the full source, so its two sub-layers are in ``fixed`` and not in the sites.
    """

    sites: Dict[str, Tensor]
    fixed: Tensor


def sublayer_costs(
    definition: str, shape: ModelShape, space: DecisionSpace, lengths: Lengths, with_policy: bool = True
) -> SublayerCosts:
    """Tabulates what each sub-layer costs under every token strategy.

    Raises:
        ValueError: an unknown definition.
    """
    if definition not in DEFINITIONS:
        raise ValueError(f"FLOPs definition {definition!r} is not one of {', '.join(DEFINITIONS)}")
    source = shape.encoded_tokens(lengths.source)
    kept = count_kept_tokens(source, space.token_strategies).double()  # [B, J]
    sites = shape.encoder_sites(kept)
    if definition == "paper":
        fixed = sites["encoder_attention"] + sites["encoder_ffn"]
        return SublayerCosts({**sites, **shape.decoder_sites_of_paper(kept)}, fixed)
    full = source.double().unsqueeze(1).expand_as(kept)  # [B, J]
    target = lengths.target.double().unsqueeze(1).expand_as(kept)  # [B, J]
    beam, dec = lengths.beam if shape.head is None else 1, shape.decoder_dim
    sites.update(shape.decoder_sites(target, kept, beam))
    fixed = shape.first_layer(target, full, kept, beam)
    if shape.head is None:
        fixed = fixed + beam * lm_head_flops(target, dec, shape.vocabulary)
    else:
        read = target if shape.head.every_token else torch.ones_like(target)  # [B, J]
        fixed = fixed + linear_layers_flops(read, shape.head.widths)
    if with_policy and shape.policy_networks:
        outputs = shape.policy_heads * (space.num_switches + len(space.token_strategies))
        fixed = fixed + shape.policy_networks * policy_flops(
            shape.policy_input or shape.encoder_dim, shape.policy_hidden, outputs
        )
    return SublayerCosts(sites, fixed)


def path_flops(
    definition: str, shape: ModelShape, space: DecisionSpace, decisions: Decisions, lengths: Lengths
) -> Tensor:
    """Counts the FLOPs of each example's path, float64 [B]."""
    if lengths.work is not None:
        return _flops_by_step(definition, shape, space, decisions, lengths, lengths.work)
    costs = sublayer_costs(definition, shape, space, lengths)
    choice = decisions.token_choice.unsqueeze(1)  # [B, 1]
    total = costs.fixed.gather(1, choice).squeeze(1)  # [B]
    for site in SITES:
        layers = getattr(decisions, site)[:, 1 if site.startswith("encoder") else 0 :].sum(dim=1)  # [B]
        total = total + layers * costs.sites[site].gather(1, choice).squeeze(1)
    return total


def _flops_by_step(
    definition: str, shape: ModelShape, space: DecisionSpace, decisions: Decisions, lengths: Lengths, work: LayerWork
) -> Tensor:
    """As :func:`path_flops`, where the decoder's layers differ from step to step.

    Choice: ``paper`` has no steps; there a layer counts by the share of the tokens that ran it.
    """
    nothing = torch.zeros_like(decisions.decoder_ffn)
    encoder_only = replace(decisions, decoder_attention=nothing, decoder_cross_attention=nothing, decoder_ffn=nothing)
    total = path_flops(definition, shape, space, encoder_only, replace(lengths, work=None))
    encoded = shape.encoded_tokens(lengths.source)
    choice = decisions.token_choice.unsqueeze(1)  # [B, 1]
    kept = count_kept_tokens(encoded, space.token_strategies).gather(1, choice)  # [B, 1]
    if definition == "paper":
        costs = {site: cost * work.share for site, cost in shape.decoder_sites_of_paper(kept.double()).items()}
    else:
        sizes = WorkCosts(
            work, shape.decoder_dim, shape.attention_dim or shape.decoder_dim, shape.decoder_ffn_dim, shape.ffn_products
        )
        costs = sizes.sites(kept.squeeze(1), shape.encoder_dim)
        total = total + sizes.more_heads(shape.vocabulary)
    for site, cost in costs.items():
        total = total + (getattr(decisions, site).double() * cost).sum(dim=1)
    return total


def dense_flops(definition: str, shape: ModelShape, space: DecisionSpace, lengths: Lengths) -> Tensor:
    """Counts the FLOPs of the dense path without a policy, float64 [B]."""
    costs = sublayer_costs(definition, shape, space, lengths, with_policy=False)
    total = costs.fixed[:, 0]
    for site in SITES:
        layers = space.layers_of(site) - (1 if site.startswith("encoder") else 0)
        total = total + layers * costs.sites[site][:, 0]
    return total


def relative_flops(
    definition: str, shape: ModelShape, space: DecisionSpace, decisions: Decisions, lengths: Lengths
) -> Tensor:
    """Divides each path by the dense path of the same example, float64 [B]."""
    return path_flops(definition, shape, space, decisions, lengths) / dense_flops(definition, shape, space, lengths)


def expected_relative_flops(
    definition: str, shape: ModelShape, distribution: PolicyDistribution, lengths: Lengths
) -> Tensor:
    """Returns E[relative FLOPs] over the policy's paths, float64 [B], differentiable in the logits.

    Switches and token strategy are independent, so the expectation is a closed form and its gradient is exact:
    sum_j h_j (fixed_j + sum_l p_l cost_jl).
    """
    space = distribution.space
    costs = sublayer_costs(definition, shape, space, lengths)
    total = costs.fixed  # [B, J]
    for site in SITES:
        pairs = space.switch_indices(site)
        always = space.always_runs(site) - (1 if site.startswith("encoder") else 0)
        kept_layers = torch.full_like(total[:, :1], float(always))  # [B, 1]
        if pairs:
            outputs = [output for output, _ in pairs]
            kept_layers = kept_layers + distribution.keep_probability[:, outputs].double().sum(dim=1, keepdim=True)
        total = total + kept_layers * costs.sites[site]
    expected = (distribution.token_probability.double() * total).sum(dim=1)
    return expected / dense_flops(definition, shape, space, lengths)
