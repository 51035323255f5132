"""The vectorised n-gram blocker forbids what the slow rule forbids."""

import math

import pytest
import torch

pytest.importorskip("fairseq")
from fairseq.ngram_repeat_block import NGramRepeatBlock  # noqa: E402

from sd_fairseq.plugin.repairs.ngram_blocker import NGramBlocker  # noqa: E402

SIZES = [1, 2, 3, 4]


def forbid_slowly(tokens, lprobs, size, step):
    """The rule, hypothesis by hypothesis: a token is forbidden if with it an n-gram would stand there twice."""
    lprobs = lprobs.clone()
    for row, hypothesis in enumerate(tokens[:, : step + 1].tolist()):
        seen = {tuple(hypothesis[start : start + size]) for start in range(len(hypothesis) - size + 1)}
        for token in range(lprobs.size(1)):
            if tuple((hypothesis + [token])[-size:]) in seen:
                lprobs[row, token] = -math.inf
    return lprobs


def make_case(step, seed, rows=6, vocabulary=5):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (rows, step + 4), generator=generator)
    return tokens, torch.randn(rows, vocabulary, generator=generator)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", range(10))
def test_equals_the_slow_rule(size, step):
    for seed in range(5):
        tokens, lprobs = make_case(step, seed)
        expected = forbid_slowly(tokens, lprobs, size, step)
        assert torch.equal(NGramBlocker(size)(tokens, lprobs, 2, 3, step), expected)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("step", range(8))
def test_equals_fairseq_on_tokens_without_padding(size, step):
    tokens, lprobs = make_case(step, seed=7)
    theirs = NGramRepeatBlock(size, use_extension=False)(tokens[:, : step + 1], lprobs.clone(), 2, 3, step)
    assert torch.equal(NGramBlocker(size)(tokens, lprobs, 2, 3, step), theirs)


def test_start_token_takes_part():
    tokens = torch.tensor([[2, 5, 2, 0, 0]])
    assert NGramBlocker(2)(tokens, torch.zeros(1, 8), 1, 1, 2).isinf().nonzero().tolist() == [[0, 5]]


def test_changes_in_place_and_keeps_the_type():
    tokens, lprobs = make_case(step=9, seed=0)
    lprobs = lprobs.half()
    result = NGramBlocker(2)(tokens, lprobs, 2, 3, 9)
    assert result is lprobs and result.dtype == torch.float16 and result.isinf().any()


@pytest.mark.parametrize("size", SIZES)
def test_compiles_to_torchscript(size):
    tokens, lprobs = make_case(step=9, seed=3)
    expected = NGramBlocker(size)(tokens, lprobs.clone(), 2, 3, 9)
    assert torch.equal(torch.jit.script(NGramBlocker(size))(tokens, lprobs, 2, 3, 9), expected)


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="is 0, expected at least 1"):
        NGramBlocker(0)
    tokens, lprobs = make_case(step=3, seed=0)
    with pytest.raises(ValueError, match=r"found 6 rows of tokens and 6 of lprobs, expected 2 \* 2"):
        NGramBlocker(2)(tokens, lprobs, 2, 2, 3)
