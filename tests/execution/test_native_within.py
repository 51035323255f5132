"""Native attention of sentences over themselves is attention, whatever the sizes."""

import pytest
import torch

from sd_fairseq.execution.native import library, within

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native library cannot be had here")


def plain_attention(qkv, lengths, heads):
    """The textbook's way, sentence by sentence, in float32."""
    parts = []
    for part in qkv.float().split(lengths):
        queries, keys, values = part.view(len(part), 3, heads, -1).unbind(1)
        weights = torch.einsum("qhd,nhd->hqn", queries, keys).softmax(dim=-1)
        parts.append(torch.einsum("hqn,nhd->qhd", weights, values).reshape(len(part), -1))
    return torch.cat(parts)


@pytest.mark.parametrize("heads, size", [(2, 8), (3, 22), (2, 64), (1, 130)])
@pytest.mark.parametrize("lengths", [[1], [5, 1, 2], [64, 65, 63], [131, 7]])
def test_it_is_attention_within_bfloat16s_rounding(lengths, heads, size):
    qkv = torch.randn(sum(lengths), 3 * heads * size)
    qkv[:, : heads * size] *= size**-0.5
    qkv = qkv.bfloat16()
    found = within.attend_within(library.load(), qkv, lengths, heads)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), plain_attention(qkv, lengths, heads), atol=0.02, rtol=0.01)


def test_large_scores_do_not_overflow():
    qkv = 30 * torch.randn(40, 3 * 64).bfloat16()
    found = within.attend_within(library.load(), qkv, [40], 2)
    torch.testing.assert_close(found.float(), plain_attention(qkv, [40], 2), atol=0.5, rtol=0.02)


def test_batch_mates_and_threads_do_not_matter():
    qkv, threads = torch.randn(50, 3 * 64).bfloat16(), torch.get_num_threads()
    together = within.attend_within(library.load(), qkv, [20, 7, 23], 4)
    assert torch.equal(within.attend_within(library.load(), qkv[20:27], [7], 4), together[20:27])
    try:
        torch.set_num_threads(3)
        assert torch.equal(within.attend_within(library.load(), qkv, [20, 7, 23], 4), together)
    finally:
        torch.set_num_threads(threads)


def test_where_it_is_taken(monkeypatch):
    qkv = torch.randn(4, 48)
    assert within.kernel_for(qkv, 2) is None, "PyTorch's own kernel is the faster one in float32"
    assert (within.kernel_for(qkv.bfloat16(), 2) is not None) == within.multiplies_pairs()
    assert within.kernel_for(torch.randn(4, 9).bfloat16(), 1) is None, "heads of 3"
    monkeypatch.setenv(library.SWITCH, "0")
    assert within.kernel_for(qkv.bfloat16(), 2) is None
