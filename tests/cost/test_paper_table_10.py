"""The paper's own FLOPs come out of its Table 10 under the definition ``paper`` (BART-large, relative, in percent)."""

import pytest
import torch

from sd_fairseq.cost.path_flops import Lengths, ModelShape, expected_relative_flops
from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.decision.policy import PolicyDistribution

BART_LARGE = ModelShape(1024, 1024, 4096, 4096, 50265)
LAYERS = 12


def distribution_at(attention, ffn, token):
    """Skips these percentages of all ATT, all FFN and all tokens, spread over whatever may be skipped.

    A share of tokens that is no whole percentage is mixed from its two neighbours.
    """
    whole = int(token)
    space = DecisionSpace.build(LAYERS, LAYERS, token_strategies=f"keep,last:{whole},last:{whole + 1}")
    skip = torch.empty(1, space.num_switches, dtype=torch.float64)
    for index, (site, _) in enumerate(space.switches):
        wanted = ffn if site.endswith("ffn") else attention
        skip[0, index] = wanted / 100 * LAYERS / len(space.switch_indices(site))
    upper = token - whole
    shares = torch.tensor([[1e-12, 1 - upper, upper]], dtype=torch.float64)
    return PolicyDistribution(space, torch.logit(1 - skip), torch.log(shares))


@pytest.mark.parametrize(
    "attention,ffn,token,source,computed,printed",
    [
        (8.50, 11.13, 28.75, 1024, 61.0, 61.1),  # CNN/DailyMail: BART's longest source
        (13.30, 13.54, 7.18, 100, 80.3, 80.7),  # SST: single sentences (100: whole percentages are whole tokens)
        (10.21, 11.93, 9.02, 384, 80.6, 80.5),  # SQuAD 1.1: the usual window
    ],
    ids=["CNN/DM", "SST", "SQuAD"],
)
def test_table_10_rates_give_the_papers_flops(attention, ffn, token, source, computed, printed):
    lengths = Lengths(torch.tensor([source]), torch.tensor([1]))
    found = 100 * float(expected_relative_flops("paper", BART_LARGE, distribution_at(attention, ffn, token), lengths))
    assert found == pytest.approx(computed, abs=0.5)
    assert found == pytest.approx(printed, abs=0.5)


@pytest.mark.parametrize("beam", [1, 4])
def test_generation_saves_less_than_the_papers_count_at_the_same_rates(beam):
    """The target keeps its length, every beam decodes it, and encoder layer 1 sees the full source."""
    distribution = distribution_at(8.50, 11.13, 28.75)
    lengths = Lengths(torch.tensor([1024]), torch.tensor([70]), beam)
    generation, paper = (
        float(expected_relative_flops(definition, BART_LARGE, distribution, lengths))
        for definition in ("generation", "paper")
    )
    assert paper < generation < 1
