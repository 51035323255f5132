"""A trace belongs to the model that it is matched with."""

import pytest
from traces import make_record

pytest.importorskip("fairseq")
from factories import build_model  # noqa: E402

from sd_fairseq.plugin.guards.errors import InputError  # noqa: E402
from sd_fairseq.study.match_random import matching_keep_probability  # noqa: E402

SITES = ("encoder_attention", "encoder_ffn", "decoder_attention", "decoder_cross_attention", "decoder_ffn")


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
