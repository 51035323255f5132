"""Random decisions cost what they are matched with; a trace belongs to the model."""

import pytest
import torch
from traces import make_record

pytest.importorskip("fairseq")
from factories import build_model  # noqa: E402

from sd_fairseq.cost.path_flops import Lengths, relative_flops  # noqa: E402
from sd_fairseq.decision.given_policies import RandomPolicy  # noqa: E402
from sd_fairseq.plugin.guards.errors import InputError  # noqa: E402
from sd_fairseq.study.match_random import matching_keep_probability  # noqa: E402

SITES = ("encoder_attention", "encoder_ffn", "decoder_attention", "decoder_cross_attention", "decoder_ffn")
DRAWS = 2000


@pytest.mark.parametrize("stack", [None, "encoder", "decoder"])
def test_a_trace_of_a_model_of_another_depth_is_refused(stack):
    model = build_model()
    depths = {"encoder": model.space.encoder_layers, "decoder": model.space.decoder_layers}
    sites = {site: "1" * (depths[site[:7]] + (site[:7] == stack)) for site in SITES}
    record = make_record(3, flops_generation=800, flops_generation_dense=1000, **sites)
    if stack is None:
        assert 0 <= matching_keep_probability(model.space, model.shape, [record]) <= 1
        return
    with pytest.raises(InputError, match="example 3 of the trace is of a model of"):
        matching_keep_probability(model.space, model.shape, [record])


@pytest.mark.parametrize("flops", [0.5, 0.7, 0.9])
def test_random_decisions_cost_what_is_asked_for_on_the_traces_lengths(flops):
    model = build_model()
    sites = {site: "1" * {"e": model.space.encoder_layers, "d": model.space.decoder_layers}[site[0]] for site in SITES}
    records = [make_record(i, flops_generation=1000, flops_generation_dense=1000, **sites) for i in range(3)]
    keep = matching_keep_probability(model.space, model.shape, records, flops)
    lengths = Lengths(torch.full((DRAWS,), 60), torch.full((DRAWS,), 11), 4)  # as in the trace
    tokens = torch.randint(4, 1000, (DRAWS, 60))
    drawn = RandomPolicy(model.space, keep, 1).decide(tokens, torch.zeros_like(tokens, dtype=torch.bool))
    found = relative_flops("generation", model.shape, model.space, drawn, lengths)
    assert abs(float(found.mean()) - flops) < 4 * float(found.std()) / DRAWS**0.5


@pytest.mark.parametrize("flops", [0.0, 1.0, 70.0])
def test_a_share_out_of_range_is_refused(flops):
    with pytest.raises(InputError, match=f"--flops {flops}"):
        matching_keep_probability(build_model().space, build_model().shape, [], flops)
