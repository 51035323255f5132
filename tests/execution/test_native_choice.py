"""Where native code is chosen, whatever this processor is."""

from types import SimpleNamespace

import pytest
import torch

from sd_fairseq.execution.native import within
from sd_fairseq.execution.native.decoder import ACTIVATIONS, Shape, can_run

RIGHT = Shape(64, 128, 8, sorted(ACTIVATIONS)[0], False, False, torch.float32)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim,inner,heads", [(64, 128, 8), (32, 32, 1), (96, 160, 6)])
def test_whole_blocks_and_pairs_run_natively(activation, dtype, dim, inner, heads):
    assert can_run(RIGHT._replace(activation=activation, dtype=dtype, dim=dim, inner=inner, heads=heads))


@pytest.mark.parametrize(
    "change",
    [{"dim": 48}, {"inner": 100}, {"dim": 96, "heads": 32}, {"activation": "swish"}, {"dtype": torch.float16}],
    ids=str,
)
def test_anything_else_does_not(change):
    assert not can_run(RIGHT._replace(**change))


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    "dtype,device,dim,takes",
    [
        (torch.bfloat16, "cpu", 6, True),
        (torch.bfloat16, "cpu", 5, False),
        (torch.float32, "cpu", 6, False),
        (torch.bfloat16, "meta", 6, False),
    ],
)
def test_sentences_attend_natively_in_bfloat16_on_a_processor_that_multiplies_pairs(
    monkeypatch, pairs, there, dtype, device, dim, takes
):
    library = object() if there else None
    monkeypatch.setattr(within, "library", SimpleNamespace(load=lambda: library))
    monkeypatch.setattr(within, "multiplies_pairs", lambda: pairs)
    heads = 2
    qkv = torch.empty(7, 3 * heads * dim, dtype=dtype, device=device)
    assert within.kernel_for(qkv, heads) is (library if takes and pairs else None)
