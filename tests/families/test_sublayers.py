"""The parts of T5 and LLaMA, each against its formula or its law."""

import pytest
import torch
import torch.nn.functional as F

from sd_fairseq.families.attention import Attention, causal_scores, padding_scores, reorder_cache
from sd_fairseq.families.feed_forward import FeedForward
from sd_fairseq.families.norms import RMSNorm
from sd_fairseq.families.positions import RelativeBias, relative_bucket, rotate


def test_buckets_are_exact_nearby_and_grow_with_the_distance():
    """By hand: 32 buckets, up to 128. In the encoder 16 a direction, 8 of them exact."""
    distance = torch.tensor([-200, -128, -64, -8, -7, -1, 0, 1, 7, 8, 64, 128, 200])
    both = relative_bucket(distance, 32, 128, both_ways=True).tolist()
    assert both == [15, 15, 14, 8, 7, 1, 0, 17, 23, 24, 30, 31, 31]
    back = relative_bucket(distance, 32, 128, both_ways=False).tolist()
    assert back == [31, 31, 26, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0]


def test_a_bias_depends_on_head_and_distance_only():
    bias = RelativeBias(3, 8, 20, both_ways=True)
    places = torch.tensor([[0, 3, 4, 11]])
    found = bias(places, places + 100 - 100)
    assert found.shape == (1, 3, 4, 4)
    assert torch.equal(found, bias(places + 57, places + 57))
    assert torch.equal(found[0, :, 1, 2], bias.embedding.weight[relative_bucket(torch.tensor(1), 8, 20, True)])


def test_products_of_turned_vectors_depend_on_their_distance_and_lengths_stay():
    x, y, places = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6), torch.tensor([[0, 2, 3, 9]])
    assert torch.equal(rotate(x, torch.zeros(1, 4, dtype=torch.long), 100.0), x)
    turned = rotate(x, places, 100.0)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    products = turned @ rotate(y, places, 100.0).transpose(2, 3)
    moved = rotate(x, places + 5, 100.0) @ rotate(y, places + 5, 100.0).transpose(2, 3)
    torch.testing.assert_close(products, moved, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(products, x @ y.transpose(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_divides_by_the_root_mean_square(dtype):
    norm = RMSNorm(8, eps=1e-6).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 8) * 1e4  # whose square float16 could not hold
    expected = norm.weight.float() * (x / x.square().mean(dim=1, keepdim=True).sqrt())
    found = norm(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.05 if dtype == torch.bfloat16 else 1e-5, rtol=0.02)


def test_feed_forward_with_and_without_a_gate():
    x = torch.randn(2, 3, 6)
    gated, plain = FeedForward(6, 10, "gated-gelu"), FeedForward(6, 10, "relu")
    inner = F.gelu(x @ gated.gate.weight.t(), approximate="tanh") * (x @ gated.fc1.weight.t())
    torch.testing.assert_close(gated(x), inner @ gated.fc2.weight.t())
    torch.testing.assert_close(plain(x), F.relu(x @ plain.fc1.weight.t()) @ plain.fc2.weight.t())
    with pytest.raises(ValueError, match="'swish' is not one of relu, gelu, gelu-tanh, gated-gelu, gated-silu"):
        FeedForward(6, 10, "swish")


@torch.no_grad()
def test_attention_is_its_formula_and_hides_padding_and_the_future():
    attention = Attention(6, heads=2, head_dim=5)
    x, padding = torch.randn(4, 3, 6), torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    mask = padding_scores(padding, torch.float32) / 2 + causal_scores(4, torch.float32, x.device)
    found, weights = attention(x, x, mask)
    states = x.transpose(0, 1)  # [B, T, C]
    q, k, v = (
        (states @ one.weight.t()).view(3, 4, 2, 5).transpose(1, 2)
        for one in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    hidden = padding[:, None, None, :] | torch.ones(4, 4).triu(1).bool()
    seen = ~hidden.all(dim=-1, keepdim=True)  # the last row's first token sees nothing
    expected = torch.softmax((q @ k.transpose(2, 3)).masked_fill(hidden, -1e30), dim=-1)
    torch.testing.assert_close(weights * seen, expected * seen)
    joined = (expected @ v).transpose(1, 2).reshape(3, 4, 10) @ attention.out_proj.weight.t()
    torch.testing.assert_close(found.transpose(0, 1)[seen[:, 0, :, 0]], joined[seen[:, 0, :, 0]])
    assert bool(torch.isfinite(found).all())


@torch.no_grad()
def test_a_cache_grows_step_by_step_and_follows_a_reordering():
    attention, x = Attention(6, heads=2, head_dim=5), torch.randn(4, 3, 6)
    whole, _ = attention(x, x, causal_scores(4, torch.float32, x.device))
    cache, order = {}, torch.tensor([2, 0])
    for step in range(2):
        found, _ = attention(x[step : step + 1], x[step : step + 1], None, cache)
        torch.testing.assert_close(found, whole[step : step + 1])
    reorder_cache(cache, order)
    for step in range(2, 4):
        one = x[step : step + 1].index_select(1, order)
        found, _ = attention(one, one, None, cache)
        torch.testing.assert_close(found, whole[step : step + 1].index_select(1, order))
