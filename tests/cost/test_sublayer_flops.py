"""Every closed form against torch's flop counter on the matrix products it stands for."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sd_fairseq.cost.sublayer_flops import (
    cached_self_attention_flops,
    cross_attention_cache_flops,
    cross_attention_query_flops,
    ffn_flops,
    linear_layers_flops,
    lm_head_flops,
    policy_flops,
    self_attention_flops,
)

DIM, HEADS, FFN, VOCABULARY = 12, 3, 20, 31


def project(tokens, source_dim=DIM, target_dim=DIM):
    return F.linear(torch.zeros(tokens, source_dim), torch.zeros(target_dim, source_dim))


def attend(queries, keys):
    split = [torch.zeros(1, HEADS, count, DIM // HEADS) for count in (queries, keys, keys)]
    return F.scaled_dot_product_attention(*split)


def traced(run):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def full_self_attention(tokens):
    for _ in range(4):
        project(tokens)
    attend(tokens, tokens)


def cached_self_attention(tokens):
    for position in range(1, tokens + 1):
        for _ in range(4):
            project(1)
        attend(1, position)


def cross_attention_query(target, source):
    for _ in range(target):
        project(1)
        attend(1, source)
        project(1)


@pytest.mark.parametrize("tokens", [1, 2, 7, 19])
@pytest.mark.parametrize(
    "closed_form,run",
    [
        (lambda n: self_attention_flops(n, DIM), full_self_attention),
        (lambda n: cached_self_attention_flops(n, DIM), cached_self_attention),
        (lambda n: cross_attention_query_flops(n, n + 3, DIM), lambda n: cross_attention_query(n, n + 3)),
        (lambda n: cross_attention_cache_flops(n, DIM, 8), lambda n: [project(n, 8, DIM) for _ in range(2)]),
        (lambda n: ffn_flops(n, DIM, FFN), lambda n: [project(n, DIM, FFN), project(n, FFN, DIM)]),
        (lambda n: lm_head_flops(n, DIM, VOCABULARY), lambda n: project(n, DIM, VOCABULARY)),
        (lambda n: linear_layers_flops(n, (DIM, 8, 3)), lambda n: [project(n, DIM, 8), project(n, 8, 3)]),
    ],
    ids=["self-attention", "cached self-attention", "cross-attention", "cross-attention cache", "ffn", "lm", "head"],
)
def test_closed_form_equals_traced_matrix_products(closed_form, run, tokens):
    assert int(closed_form(torch.tensor(tokens))) == traced(lambda: run(tokens))


def test_policy_is_two_matrix_products_a_sentence():
    run = traced(lambda: [project(1, DIM, 9), project(1, 9, 17)])
    assert policy_flops(DIM, 9, 17) == run


def test_lengths_may_be_tensors_of_any_shape():
    lengths = torch.tensor([[3, 5], [8, 13]])
    for flops in (self_attention_flops(lengths, DIM), cached_self_attention_flops(lengths, DIM)):
        assert flops.shape == lengths.shape
    assert self_attention_flops(lengths, DIM)[1, 0] == self_attention_flops(torch.tensor(8), DIM)
