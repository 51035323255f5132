"""A packed product is the plain product, and says what it cannot pack."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sd_fairseq.execution import packed_linear
from sd_fairseq.execution.packed_linear import Int8Linear, PackedLinear, can_pack


@pytest.mark.parametrize("rows", [1, 4, 5, 64, 300])
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_packed_product_equals_plain_product(rows, activation, has_bias):
    x, weight, bias = torch.randn(rows, 512), torch.randn(600, 512) * 0.1, torch.randn(600) if has_bias else None
    expected = F.linear(x, weight, bias)
    expected = expected if activation is None else getattr(F, activation)(expected)
    packed = PackedLinear(weight, bias, activation)
    assert packed.is_packed == can_pack(weight)
    torch.testing.assert_close(packed(x), expected, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_bfloat16_is_packed_where_the_machine_can_and_equals_the_plain_product():
    x, weight = torch.randn(4, 64).bfloat16(), torch.randn(48, 64).bfloat16()
    packed = PackedLinear(weight, None, "gelu")
    torch.testing.assert_close(packed(x), F.gelu(F.linear(x, weight)), atol=0.05, rtol=0.02)


def test_small_weights_are_left_as_they_are():
    assert not can_pack(torch.randn(16, 16))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_all_numbers_share_few_kernels_and_give_the_plain_product(monkeypatch, dtype):
    """oneDNN compiles a kernel for every number of rows and keeps it."""
    weight = (torch.randn(512, 512) * 0.05).to(dtype)
    packed, seen = PackedLinear(weight), set()
    if not packed.is_packed:
        pytest.skip("this machine packs none of that type")
    product = torch.ops.mkldnn._linear_pointwise

    def watched(x, *more):
        seen.add(x.size(0))
        return product(x, *more)

    monkeypatch.setattr(packed_linear, "multiply_packed", watched)
    for rows in [*range(1, 130), 500, 1000, 1023]:
        x = torch.randn(rows, 512).to(dtype)
        out = packed(x)
        assert out.shape == (rows, 512)
        torch.testing.assert_close(out, F.linear(x, weight), atol=0.06 if dtype == torch.bfloat16 else 1e-4, rtol=0.02)
    assert len(seen) <= packed_linear.ROWS_ROUNDED + 6


@torch.no_grad()
def test_leading_dimensions_are_kept_and_none_is_batched_with_another():
    weight, x = torch.randn(24, 16), torch.randn(3, 5, 16)
    packed = PackedLinear(weight)
    torch.testing.assert_close(packed(x), F.linear(x, weight), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed(x[:, :0]), torch.empty(3, 0, 24))


def test_a_type_that_cannot_be_packed_still_multiplies():
    weight, x = torch.randn(8, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    assert not can_pack(weight)
    torch.testing.assert_close(PackedLinear(weight)(x), F.linear(x, weight))


@torch.no_grad()
def test_8_bit_product_is_within_its_rounding():
    """Every weight is off by at most half a step of its output's scale, every input by half a step of theirs."""
    x, weight, bias = torch.randn(7, 64), torch.randn(32, 64), torch.randn(32)
    weight_step = weight.abs().amax(dim=1) / 127  # [N]
    input_step = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 127  # engines without 8-bit sums use 7 bits
    bound = (
        x.abs().sum(1, keepdim=True) * weight_step / 2
        + (weight.abs() + weight_step.unsqueeze(1)).sum(1) * input_step / 2
    )
    error = (Int8Linear(weight, bias)(x) - F.linear(x, weight, bias)).abs()
    assert bool((error <= 1.05 * bound).all())
    assert float(error.max()) > 0, "8 bits cannot be exact here"


@torch.no_grad()
def test_8_bit_product_of_the_largest_numbers_does_not_overflow():
    """Some kernels add two products of 8 bits in 16 bits, which the largest would not fit in."""
    for sign in (1, -1):
        x, weight = torch.full((2, 64), 3.0), torch.full((8, 64), 0.5 * sign)
        torch.testing.assert_close(Int8Linear(weight)(x), F.linear(x, weight), atol=0.5, rtol=0.02)


@torch.no_grad()
def test_8_bit_product_adds_bias_and_activation_and_bears_an_output_without_weights():
    x, weight, bias = torch.randn(5, 16), torch.randn(6, 16), torch.randn(6)
    weight[2] = 0
    plain = Int8Linear(weight, bias)(x)
    assert torch.equal(plain[:, 2], bias[2].expand(5))
    torch.testing.assert_close(plain - Int8Linear(weight)(x), bias.expand(5, -1))
    assert torch.equal(Int8Linear(weight, bias, "relu")(x), F.relu(plain))


def test_large_float32_weights_are_packed_where_pytorch_has_onednn():
    has = torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )
    assert can_pack(torch.zeros(512, 512)) == has
    assert not can_pack(torch.zeros(512, 511))


def test_a_pytorch_without_the_operators_packs_nothing(monkeypatch):
    bare = SimpleNamespace(mkldnn=SimpleNamespace(_linear_pointwise=None))
    monkeypatch.setattr(packed_linear, "torch", SimpleNamespace(ops=bare, backends=torch.backends, bfloat16=None))
    assert not can_pack(torch.zeros(512, 512))


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="tanh"):
        PackedLinear(torch.randn(4, 4), None, "tanh")
