"""The fast generator on a GPU: fairseq's hypotheses in float32, its scores nearly in half precision."""

import pytest
import torch
from factories import build_model, random_batch, undecide
from fairseq.sequence_generator import SequenceGenerator

from sd_fairseq.plugin.generation.fast_model import FastModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch finds none"),
]


def search(model, beam, precision=None):
    net_input = {name: value.cuda() for name, value in random_batch().net_input.items()}
    ensemble = [model] if precision is None else FastModel(model, precision)
    generator = SequenceGenerator(ensemble, model.decoder.dictionary, beam, max_len_b=12)
    return generator.generate([model], {"net_input": net_input})


def build():
    torch.manual_seed(1)
    model = build_model(sd_policy="network")
    undecide(model)
    return model.cuda().eval()


@pytest.mark.parametrize("beam", [1, 4])
def test_fast_equals_fairseq_in_float32(beam, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    model = build()
    torch.manual_seed(3)
    expected = search(model, beam)
    torch.manual_seed(3)
    for group, other in zip(expected, search(model, beam, "model")):
        assert [one["tokens"].tolist() for one in group] == [one["tokens"].tolist() for one in other]
        torch.testing.assert_close(other[0]["score"], group[0]["score"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_finds_hypotheses_that_score_alike(precision):
    model = build()
    torch.manual_seed(3)
    expected = search(model, 4)
    torch.manual_seed(3)
    differences = [float(a[0]["score"] - b[0]["score"]) for a, b in zip(expected, search(model, 4, precision))]
    assert max(map(abs, differences)) < 0.2
