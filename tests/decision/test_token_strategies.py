import pytest
import torch
from factories import pad_rows

from sd_fairseq.decision.token_strategies import (
    DEFAULT_TOKEN_STRATEGIES,
    TokenStrategy,
    count_kept_tokens,
    kept_token_mask,
    parse_token_strategies,
)

LONGEST = 200
STRATEGIES = parse_token_strategies(DEFAULT_TOKEN_STRATEGIES + ",last:1,last:99,uniform:1,uniform:67,uniform:99")
INDEXED = list(enumerate(STRATEGIES))


def keep_mask_of_all_lengths(index):
    """Row i is a right-padded source of i + 1 tokens: BoolTensor [200, 200]."""
    lengths = torch.arange(1, LONGEST + 1)
    padding = torch.arange(LONGEST) >= lengths.unsqueeze(1)
    return kept_token_mask(padding, torch.full((LONGEST,), index), STRATEGIES)


def own_kept(tokens, index):
    """Which of its own tokens every row keeps, padding (0) left out."""
    padding = tokens.eq(0)
    kept = kept_token_mask(padding, torch.full((tokens.size(0),), index), STRATEGIES)
    assert not (kept & padding).any()
    return [row[~pad].tolist() for row, pad in zip(kept, padding)]


@pytest.mark.parametrize("index,strategy", INDEXED, ids=str)
def test_first_token_and_final_end_of_sentence_are_never_dropped(index, strategy):
    kept = keep_mask_of_all_lengths(index)
    assert kept[:, 0].all()
    assert kept.diagonal().all()


@pytest.mark.parametrize("index,strategy", INDEXED, ids=str)
def test_kept_count_is_the_closed_form_for_every_length(index, strategy):
    counted = keep_mask_of_all_lengths(index).sum(dim=1)
    assert torch.equal(counted, count_kept_tokens(torch.arange(1, LONGEST + 1), STRATEGIES)[:, index])
    by_hand = [n - min(n * strategy.percent // 100, max(n - 2, 0)) for n in range(1, LONGEST + 1)]
    assert counted.tolist() == by_hand


@pytest.mark.parametrize("index,strategy", [pair for pair in INDEXED if pair[1].kind == "uniform"], ids=str)
def test_uniform_drops_evenly_spaced_tokens(index, strategy):
    for row, length in zip(keep_mask_of_all_lengths(index), range(1, LONGEST + 1)):
        dropped = (~row[:length]).nonzero().squeeze(1)
        if dropped.numel() < 2:
            continue
        gaps = dropped.diff()
        assert gaps.max() - gaps.min() <= 1, f"{length} tokens, dropped {dropped.tolist()}"
        spacing = (length - 2) / dropped.numel()  # inner tokens a dropped one
        assert spacing - 1 < gaps.min() and gaps.max() < spacing + 1


@pytest.mark.parametrize("index,strategy", [pair for pair in INDEXED if pair[1].kind == "last"], ids=str)
def test_last_drops_one_run_just_before_the_end_of_sentence(index, strategy):
    for row, length in zip(keep_mask_of_all_lengths(index), range(1, LONGEST + 1)):
        dropped = (~row[:length]).sum()
        run = torch.arange(length - 1 - dropped, length - 1)
        assert torch.equal((~row[:length]).nonzero().squeeze(1), run)


def test_keep_drops_nothing():
    lengths = torch.arange(1, LONGEST + 1)
    assert torch.equal(keep_mask_of_all_lengths(0).sum(dim=1), lengths)


@pytest.mark.parametrize("index,strategy", INDEXED, ids=str)
def test_side_and_amount_of_padding_change_nothing(index, strategy):
    rows = [torch.ones(length, dtype=torch.long) for length in (1, 2, 3, 11, 40, 57)]
    alone = [own_kept(row.unsqueeze(0), index)[0] for row in rows]
    for side in ("left", "right"):
        for extra in (0, 1, 9):
            assert own_kept(pad_rows(rows, 0, side, extra), index) == alone


def test_every_example_follows_its_own_choice():
    padding = torch.zeros(len(STRATEGIES), 60, dtype=torch.bool)
    together = kept_token_mask(padding, torch.arange(len(STRATEGIES)), STRATEGIES)
    for index in range(len(STRATEGIES)):
        assert torch.equal(together[index], keep_mask_of_all_lengths(index)[59, :60])


def test_default_strategies_are_the_papers_seven():
    named = [str(strategy) for strategy in parse_token_strategies(DEFAULT_TOKEN_STRATEGIES)]
    assert named == ["keep", "last:10", "last:20", "last:30", "uniform:25", "uniform:33", "uniform:50"]


def test_names_are_parsed_back_and_blanks_do_not_matter():
    text = " keep, last:10 ,uniform:50"
    strategies = parse_token_strategies(text)
    assert strategies == (TokenStrategy("keep", 0), TokenStrategy("last", 10), TokenStrategy("uniform", 50))
    assert parse_token_strategies(",".join(map(str, strategies))) == strategies


@pytest.mark.parametrize(
    "text,named",
    [
        ("keep,first:10", "first:10"),
        ("keep,last", "last"),
        ("keep,last:ten", "last:ten"),
        ("keep,last:1.5", "last:1.5"),
        ("keep,keep:10", "keep:10"),
        ("keep,", "''"),
        ("", "''"),
        ("keep,last:0", "last:0"),
        ("keep,last:100", "last:100"),
        ("keep,uniform:-5", "uniform:-5"),
        ("last:10,keep", "last:10,keep"),
        ("last:10", "last:10"),
        ("keep,last:10,last:10", "keep,last:10,last:10"),
        ("keep,keep", "keep,keep"),
    ],
)
def test_a_list_that_cannot_be_used_is_an_error_naming_it(text, named):
    with pytest.raises(ValueError) as error:
        parse_token_strategies(text)
    assert named in str(error.value)


@pytest.mark.parametrize("spared", [1, 5])
def test_spared_tokens_before_the_final_one_are_never_dropped_and_counted_so(spared):
    strategies = parse_token_strategies(DEFAULT_TOKEN_STRATEGIES + ",last:99,uniform:99", spared)
    assert [str(one) for one in strategies][:2] == ["keep", "last:10"]  # a trace names them as without
    for length in range(1, 30):
        padding = torch.zeros(len(strategies), length + 3, dtype=torch.bool)
        padding[:, :3] = True
        kept = kept_token_mask(padding, torch.arange(len(strategies)), strategies)[:, 3:]
        assert bool(kept[:, :1].all()) and bool(kept[:, max(length - 1 - spared, 0) :].all())
        by_hand = [length - min(length * one.percent // 100, max(length - 2 - spared, 0)) for one in strategies]
        assert kept.sum(dim=1).tolist() == by_hand
        assert count_kept_tokens(torch.tensor([length]), strategies)[0].tolist() == by_hand
    with pytest.raises(ValueError, match="-1 spared tokens"):
        parse_token_strategies("keep", -1)
