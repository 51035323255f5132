import dataclasses

import pytest
import torch
from factories import (
    build_tiny_space,
    enumerate_paths,
    random_decisions,
    random_distribution,
    repeat_distribution,
)

from sd_fairseq.cost.path_flops import (
    DEFINITIONS,
    HeadShape,
    Lengths,
    ModelShape,
    dense_flops,
    expected_relative_flops,
    path_flops,
    relative_flops,
    sublayer_costs,
)
from sd_fairseq.decision.decisions import SITES, DecisionSpace
from sd_fairseq.decision.policy import PolicyDistribution

SHAPE = ModelShape(16, 24, 40, 56, 101, policy_hidden=16, policy_networks=1)
SPACES = {
    "together": DecisionSpace.build(4, 3),
    "apart": DecisionSpace.build(4, 3, cross_attention_apart=True),
    "token only": DecisionSpace.build(4, 3, parts=["token"]),
    "later layers": DecisionSpace.build(4, 3, first_encoder_layer=4, first_decoder_layer=2, always_run_attention=1),
}
every_definition = pytest.mark.parametrize("definition", DEFINITIONS)
every_space = pytest.mark.parametrize("name", SPACES)


def random_lengths(count, beam=4):
    return Lengths(torch.randint(2, 300, (count,)), torch.randint(1, 80, (count,)), beam)


def kept_by_hand(length, strategy):
    return length - min(length * strategy.percent // 100, max(length - 2, 0))


def generation_by_hand(shape, space, decisions, row, source, steps, beam):
    """Sums multiply-accumulates token by token and step by step, as generation runs."""
    c, d = shape.encoder_dim, shape.decoder_dim
    kept = kept_by_hand(source, space.token_strategies[int(decisions.token_choice[row])])
    total = shape.policy_networks * shape.policy_hidden * (c + space.num_switches + len(space.token_strategies))
    for layer in range(space.encoder_layers):
        tokens = source if layer == 0 else kept
        for _ in range(tokens):
            if decisions.encoder_attention[row, layer]:
                total += 4 * c * c + 2 * tokens * c
            if decisions.encoder_ffn[row, layer]:
                total += 2 * c * shape.encoder_ffn_dim
    for layer in range(space.decoder_layers):
        if decisions.decoder_cross_attention[row, layer]:
            total += kept * 2 * c * d
        for position in range(1, steps + 1):
            if decisions.decoder_attention[row, layer]:
                total += beam * (4 * d * d + 2 * position * d)
            if decisions.decoder_cross_attention[row, layer]:
                total += beam * (2 * d * d + 2 * kept * d)
            if decisions.decoder_ffn[row, layer]:
                total += beam * 2 * d * shape.decoder_ffn_dim
    return 2 * (total + beam * steps * d * shape.vocabulary)


def understanding_by_hand(shape, space, decisions, row, source, target):
    """Sums multiply-accumulates where the decoder runs once over its input and a head reads it."""
    d = shape.decoder_dim
    kept = kept_by_hand(source, space.token_strategies[int(decisions.token_choice[row])])
    total = generation_by_hand(shape, space, decisions, row, source, 0, 1) // 2  # encoder, policy, cross keys, values
    for layer in range(space.decoder_layers):
        for _ in range(target):
            if decisions.decoder_attention[row, layer]:
                total += 4 * d * d + 2 * target * d
            if decisions.decoder_cross_attention[row, layer]:
                total += 2 * d * d + 2 * kept * d
            if decisions.decoder_ffn[row, layer]:
                total += 2 * d * shape.decoder_ffn_dim
    for _ in range(target if shape.head.every_token else 1):
        total += sum(before * after for before, after in zip(shape.head.widths, shape.head.widths[1:]))
    return 2 * total


def paper_by_hand(shape, space, decisions, row, source):
    """Every layer of both stacks over the shortened source; no LM head, no policy."""
    kept = kept_by_hand(source, space.token_strategies[int(decisions.token_choice[row])])
    total = 0
    for site in SITES:
        encoder = site.startswith("encoder")
        dim = shape.encoder_dim if encoder else shape.decoder_dim
        ffn_dim = shape.encoder_ffn_dim if encoder else shape.decoder_ffn_dim
        for keep in getattr(decisions, site)[row].tolist():
            token = 2 * dim * ffn_dim if site.endswith("ffn") else 4 * dim * dim + 2 * kept * dim
            total += kept * token * keep
    return 2 * total


@every_space
@pytest.mark.parametrize("beam", [1, 4])
def test_generation_flops_equal_a_sum_over_tokens_and_steps(name, beam):
    space = SPACES[name]
    decisions, lengths = random_decisions(space, 12), random_lengths(12, beam)
    counted = path_flops("generation", SHAPE, space, decisions, lengths)
    for row in range(12):
        source, steps = int(lengths.source[row]), int(lengths.target[row])
        assert int(counted[row]) == generation_by_hand(SHAPE, space, decisions, row, source, steps, beam)


@every_space
@pytest.mark.parametrize("every_token", [False, True], ids=["classification", "spans"])
def test_flops_without_generation_equal_a_sum_over_tokens_whatever_the_beam(name, every_token):
    space = SPACES[name]
    head = HeadShape((24, 2), every_token=True) if every_token else HeadShape((24, 20, 3))
    shape = dataclasses.replace(SHAPE, head=head)
    decisions, lengths = random_decisions(space, 12), random_lengths(12, beam=4)
    counted = path_flops("generation", shape, space, decisions, lengths)
    for row in range(12):
        source, target = int(lengths.source[row]), int(lengths.target[row])
        assert int(counted[row]) == understanding_by_hand(shape, space, decisions, row, source, target)


@every_definition
def test_the_dense_path_costs_exactly_1_with_a_head_too(definition):
    shape = dataclasses.replace(SHAPE, head=HeadShape((24, 24, 2)), policy_networks=0)
    dense = SPACES["together"].keep_all(20, torch.device("cpu"))
    relative = relative_flops(definition, shape, SPACES["together"], dense, random_lengths(20))
    assert torch.equal(relative, torch.ones(20, dtype=torch.float64))


@every_space
def test_paper_flops_equal_a_sum_over_tokens(name):
    space = SPACES[name]
    decisions, lengths = random_decisions(space, 12), random_lengths(12)
    counted = path_flops("paper", SHAPE, space, decisions, lengths)
    for row in range(12):
        assert int(counted[row]) == paper_by_hand(SHAPE, space, decisions, row, int(lengths.source[row]))


@every_space
@every_definition
def test_the_dense_path_without_a_policy_costs_exactly_1(name, definition):
    space = SPACES[name]
    shape = dataclasses.replace(SHAPE, policy_networks=0)
    dense = space.keep_all(20, torch.device("cpu"))
    assert torch.equal(
        relative_flops(definition, shape, space, dense, random_lengths(20)), torch.ones(20, dtype=torch.float64)
    )


def test_the_policy_is_counted_on_every_path_and_never_in_the_dense_reference():
    space, lengths = SPACES["together"], random_lengths(5)
    without = dataclasses.replace(SHAPE, policy_networks=0)
    decisions = random_decisions(space, 5)
    policy = 2 * 16 * (16 + space.num_switches + len(space.token_strategies))
    for networks in (1, 4):
        shape = dataclasses.replace(SHAPE, policy_networks=networks)
        more = path_flops("generation", shape, space, decisions, lengths)
        assert torch.equal(more, path_flops("generation", without, space, decisions, lengths) + networks * policy)
        assert torch.equal(
            dense_flops("generation", shape, space, lengths), dense_flops("generation", without, space, lengths)
        )


@every_space
@every_definition
def test_keeping_one_sublayer_more_never_costs_less(name, definition):
    space = SPACES[name]
    decisions, lengths = random_decisions(space, 40, 0.5), random_lengths(40)
    keep = space.to_keep(decisions)
    cost = path_flops(definition, SHAPE, space, decisions, lengths)
    for switch in range(space.num_switches):
        more = keep.clone()
        more[:, switch] = True
        flipped = path_flops(definition, SHAPE, space, space.to_decisions(more, decisions.token_choice), lengths)
        assert torch.equal(flipped > cost, ~keep[:, switch])
        assert torch.equal(flipped == cost, keep[:, switch])


@every_definition
def test_dropping_a_larger_share_of_tokens_never_costs_more(definition):
    names = "keep," + ",".join(f"last:{share}" for share in range(5, 100, 5))
    space = DecisionSpace.build(3, 3, token_strategies=names)
    switches = torch.ones(1, space.num_switches, dtype=torch.bool)
    for source in (1, 2, 3, 10, 150):
        lengths = Lengths(torch.tensor([source]), torch.tensor([12]), 2)
        costs = [
            float(path_flops(definition, SHAPE, space, space.to_decisions(switches, torch.tensor([j])), lengths))
            for j in range(20)
        ]
        assert costs == sorted(costs, reverse=True)


@every_definition
def test_other_examples_change_no_examples_cost(definition):
    space = SPACES["together"]
    decisions, lengths = random_decisions(space, 6), random_lengths(6)
    together = relative_flops(definition, SHAPE, space, decisions, lengths)
    for row in range(6):
        one = torch.tensor([row])
        alone = Lengths(lengths.source[one], lengths.target[one], lengths.beam)
        assert relative_flops(definition, SHAPE, space, decisions.index_select(one), alone) == together[row]


@pytest.mark.parametrize("apart", [False, True])
@every_definition
def test_expected_flops_and_their_gradient_equal_enumeration(definition, apart):
    space = build_tiny_space(cross_attention_apart=apart)
    paths = enumerate_paths(space)
    one = random_distribution(space)
    logits = [one.keep_logits.requires_grad_(), one.token_logits.requires_grad_()]
    lengths = Lengths(torch.tensor([37]), torch.tensor([9]), 3)
    repeated = Lengths(lengths.source.expand(len(paths)), lengths.target.expand(len(paths)), 3)

    expected = expected_relative_flops(definition, SHAPE, one, lengths)
    costs = relative_flops(definition, SHAPE, space, paths, repeated)
    enumerated = (repeat_distribution(one, len(paths)).log_prob(paths).exp() * costs).sum()

    torch.testing.assert_close(expected[0], enumerated, rtol=1e-12, atol=0)
    for closed, summed in zip(torch.autograd.grad(expected, logits), torch.autograd.grad(enumerated, logits)):
        torch.testing.assert_close(closed, summed, rtol=1e-9, atol=1e-15)


@every_definition
def test_expected_flops_gradient_matches_finite_differences(definition):
    space, lengths = SPACES["apart"], random_lengths(3)
    several = random_distribution(space, 3)

    def expected(keep_logits, token_logits):
        return expected_relative_flops(definition, SHAPE, PolicyDistribution(space, keep_logits, token_logits), lengths)

    assert torch.autograd.gradcheck(
        expected, (several.keep_logits.requires_grad_(), several.token_logits.requires_grad_())
    )


@every_definition
def test_expected_flops_of_a_certain_policy_are_the_modes(definition):
    space, lengths = SPACES["together"], random_lengths(8)
    certain = random_distribution(space, 8).sharpened(1e-5)
    torch.testing.assert_close(
        expected_relative_flops(definition, SHAPE, certain, lengths),
        relative_flops(definition, SHAPE, space, certain.mode(), lengths),
    )


def test_another_definition_is_an_error_naming_it_and_the_valid_ones():
    with pytest.raises(ValueError, match="'tokens' is not one of generation, paper"):
        sublayer_costs("tokens", SHAPE, SPACES["together"], random_lengths(1))
