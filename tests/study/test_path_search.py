"""The search behind "what are decisions per input worth": table, static frontier, oracle."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from training import build_samples, build_training

from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.study.path_scorer import Scorer, sample_evenly, spread
from sd_fairseq.study.path_search import (
    analyse,
    best_static,
    choose_paths,
    gain_by_length,
    greedy_search,
    interval,
    mix,
    neighbours,
    pick,
)


def build_scorer(split=(8,), **options):
    return Scorer(build_training(options).model.eval(), build_samples(split), padding=1, beam=2)


def static_loss(losses, flops, target):
    return float(mix(best_static(losses, flops, target), losses.unsqueeze(1)).mean())


def test_a_static_path_may_be_a_mixture_of_two():
    losses, flops = torch.tensor([1.0, 2.0, 1.2]), torch.tensor([1.0, 0.5, 0.9])
    assert static_loss(losses, flops, 0.5) == pytest.approx(2.0)
    assert static_loss(losses, flops, 1.0) == pytest.approx(1.0)
    assert static_loss(losses, flops, 0.75) == pytest.approx(1.5)  # half of each: the third path is worse than that
    assert static_loss(torch.tensor([1.0, 2.0, 1.1]), flops, 0.75) == pytest.approx(1.1 + 0.9 * 0.15 / 0.4)
    with pytest.raises(InputError, match="no static path costs 0.4000 of the FLOPs, those found 0.5000 to 1.0000"):
        static_loss(losses, flops, 0.4)


@pytest.mark.parametrize("examples", [0, 1, 30, 100, 1000])
def test_examples_are_taken_from_all_lengths(examples):
    sizes = [40, 30, 20, 10, 5, 5]
    step = spread(sizes, examples)
    wanted = min(examples or sum(sizes), sum(sizes))
    assert sum(sizes[::step]) >= wanted
    assert all(sum(sizes[::other]) < wanted for other in range(step + 1, len(sizes) + 1))


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("wanted", [0, 1, 3, 7, 50, 1000])
def test_a_sample_is_as_the_whole(count, wanted):
    places = sample_evenly(count, wanted)
    assert len(set(places)) == len(places) == (min(wanted, count) if wanted else count)
    assert 0 <= min(places) and max(places) < count
    middle = sum(places) / len(places)
    assert abs(middle - (count - 1) / 2) <= 0.5  # neither the short ones nor the long ones come more often
    gaps = [after - before for before, after in zip(places, places[1:])]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_interval_covers_the_truth_in_95_of_100_cases():
    generator = torch.Generator().manual_seed(0)
    found = [interval(0.3 + torch.randn(200, generator=generator, dtype=torch.float64)) for _ in range(400)]
    assert 0.92 < sum(one["low"] < 0.3 < one["high"] for one in found) / 400 < 0.98


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_of_paths_is_better_and_as_cheap(seed):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(4, 5, generator=generator, dtype=torch.float64)
    flops = 0.3 + 0.7 * torch.rand(4, 5, generator=generator, dtype=torch.float64)
    chosen = choose_paths(losses, flops, 0.6)
    loss, cost = float(pick(losses, chosen).mean()), float(pick(flops, chosen).mean())
    assert cost <= 0.6 + 1e-9
    for other in itertools.product(range(4), repeat=5):
        paths = torch.tensor(other)
        if float(pick(flops, paths).mean()) <= cost:
            assert float(pick(losses, paths).mean()) >= loss - 1e-9


def test_a_paths_scores_do_not_depend_on_the_batches():
    found = []
    for split in ((8,), (3, 1, 4)):
        scorer = build_scorer(split)
        scores = scorer.score((((True, False) * 9)[: scorer.model.space.num_switches], 1))
        order = torch.cat([batch["id"] for batch in scorer.batches]).argsort()
        found.append([values[..., order] for values in scores])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("truth", [0.0, 0.2])
def test_what_ranges_of_lengths_gain_is_found_and_chance_is_not(truth):
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(100):
        lengths = torch.randint(5, 50, (400,), generator=generator)
        noise = 0.3 * torch.randn(9, 400, generator=generator, dtype=torch.float64)
        losses = 3.0 + noise
        losses[0] = 1.0  # everything kept
        losses[1] += truth * (lengths > lengths.median()) - truth / 2  # each is better for a half
        losses[2] += truth * (lengths <= lengths.median()) - truth / 2
        flops = torch.full((9, 400), 0.7, dtype=torch.float64)
        flops[0] = 1.0
        found.append(gain_by_length(losses, flops, lengths, 0.7))
    assert all(one["flops_static"] == pytest.approx(0.7) == one["flops_ranges"] for one in found)
    mean = sum(one["difference"] for one in found) / 100
    assert mean == pytest.approx(truth / 2, abs=0.02)
    assert sum(one["low"] > 0 for one in found) <= 7 if truth == 0 else sum(one["low"] > 0 for one in found) > 90


@pytest.mark.parametrize("arch", ["switchable_bart_base", "switchable_t5_tiny", "switchable_llama_tiny"])
def test_what_the_encoder_gave_before_changes_no_score_and_is_not_computed_again(arch):
    scorer = build_scorer((5, 3), arch=arch)
    space, calls, keys = scorer.model.space, [], []
    for number in range(6):
        keep = [True] * space.num_switches
        for place, (site, layer) in enumerate(space.switches):
            keep[place] = (layer + number) % 3 > 0 if site.startswith("decoder") else (layer + number // 3) % 2 > 0
        keys.append((tuple(keep), number // 3))
    scorer.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    found = [scorer.score(key) for key in keys]
    if not space.tied:
        assert len(set(keys)) == 6 and len(calls) == 2 * 2  # two batches, two paths of the encoder
    for key, scores in zip(keys, found):
        for one, other in zip(scores, build_scorer((5, 3), arch=arch).score(key)):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
        decisions = space.to_decisions(torch.tensor([key[0]] * 5), torch.tensor([key[1]] * 5))
        sample = scorer.batches[0]
        with torch.no_grad():
            logits, _ = scorer.model(**sample["net_input"], path=PathRequest(decisions=decisions))
        nll = F.cross_entropy(logits.transpose(1, 2), sample["target"], ignore_index=1, reduction="none")
        loss = nll.sum(dim=1) / sample["target"].ne(1).sum(dim=1)
        torch.testing.assert_close(scores.loss[:5].float(), loss, atol=1e-5, rtol=1e-5)


def test_the_halves_make_up_the_loss():
    scorer = build_scorer()
    scores = scorer.score(((True,) * scorer.model.space.num_switches, 0))
    tokens = (scorer.batches[0]["target"] != 1).sum(dim=1)
    even, odd = (tokens + 1) // 2, tokens // 2
    torch.testing.assert_close((scores.halves[0] * even + scores.halves[1] * odd) / tokens, scores.loss)


def test_the_chain_starts_dense_and_every_step_is_the_cheapest_change_that_saves():
    scorer = build_scorer()
    chain = greedy_search(scorer, 0.6)
    assert chain[0] == ((True,) * scorer.model.space.num_switches, 0)
    flops = [float(scorer.score(key).flops.mean()) for key in chain]
    assert flops[-1] <= 0.6 < flops[-2] and all(after < before for before, after in zip(flops, flops[1:]))
    for before, after in zip(chain, chain[1:]):
        candidates = neighbours(before, len(scorer.model.space.token_strategies))
        assert after in candidates and all(candidate in scorer.known for candidate in candidates)


class Growing:
    """A stand-in for a scorer: every sub-layer costs more, the more is skipped already."""

    def __init__(self, seed, switches=9):
        generator = torch.Generator().manual_seed(seed)
        self.costs, self.saved = (torch.rand(switches, generator=generator, dtype=torch.float64) for _ in range(2))
        self.saved /= self.saved.sum()
        self.model = SimpleNamespace(space=SimpleNamespace(num_switches=switches, token_strategies=["none"]))
        self.known = {}

    def score(self, key):
        if key not in self.known:
            gone = ~torch.tensor(key[0])
            loss, flops = self.costs[gone].sum() + 0.1 * gone.sum() ** 2, 1 - self.saved[gone].sum()
            self.known[key] = SimpleNamespace(loss=loss.view(1), flops=flops.view(1))
        return self.known[key]


@pytest.mark.parametrize("seed", range(10))
def test_a_lazy_search_finds_the_same_chain_with_fewer_scores(seed):
    whole, lazy = Growing(seed), Growing(seed)
    assert greedy_search(lazy, 0.2, lazy=True) == greedy_search(whole, 0.2)
    assert len(lazy.known) < len(whole.known)


def test_no_path_is_scored_twice():
    scorer = build_scorer()
    greedy_search(scorer, 0.8)
    count = len(scorer.known)
    scorer._run = None  # another pass would fail
    greedy_search(scorer, 0.8)
    assert len(scorer.known) == count


def test_the_oracle_is_at_least_as_good_as_the_static_path_and_the_policys_own_figures_are_kept():
    scorer = build_scorer()
    found = analyse(scorer, greedy_search(scorer, 0.5))
    policy, _ = scorer.score_policy()
    assert found["nll_policy"] == pytest.approx(float(policy.loss.mean()))
    assert found["flops_generation"] == pytest.approx(float(policy.flops.mean()))
    assert found["distinct_paths"] > 1  # the test's policy is undecided
    assert found["paths_tried"] == len(scorer.known)
    assert found["oracle_gap"] == pytest.approx(found["nll_static"] - found["nll_oracle"])
    assert found["policy_minus_static"]["difference"] == pytest.approx(found["nll_policy"] - found["nll_static"])
    assert found["gain_by_length"]["flops_ranges"] == pytest.approx(found["flops_generation"], abs=0.1)
    assert found["static_frontier"][0]["nll"] == pytest.approx(found["nll_dense"])
