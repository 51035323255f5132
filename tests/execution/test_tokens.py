import torch

from sd_fairseq.execution.tokens import restore_positions, shorten_source

LENGTH, BATCH, DIM = 9, 5, 3


def random_keep():
    """Random keep-masks with at least one token an example; different counts."""
    keep = torch.rand(BATCH, LENGTH) < 0.6
    keep[:, 0] = True
    keep[0] = False
    keep[0, 4] = True
    return keep


def test_kept_tokens_move_left_in_their_order():
    x = torch.randn(LENGTH, BATCH, DIM)
    for _ in range(20):
        keep = random_keep()
        short = shorten_source(x, keep)
        assert short.x.size(0) == keep.sum(dim=1).max()
        for row in range(BATCH):
            kept = keep[row].nonzero().squeeze(1)
            assert torch.equal(short.x[: len(kept), row], x[kept, row])
            assert torch.equal(short.positions[row, : len(kept)], kept)
            expected = [False] * len(kept) + [True] * (short.x.size(0) - len(kept))
            assert short.padding_mask[row].tolist() == expected
            assert (short.x[len(kept) :, row] == 0).all()


def test_keeping_every_token_changes_nothing():
    x = torch.randn(LENGTH, BATCH, DIM)
    short = shorten_source(x, torch.ones(BATCH, LENGTH, dtype=torch.bool))
    assert torch.equal(short.x, x)
    assert not short.padding_mask.any()
    assert torch.equal(short.positions, torch.arange(LENGTH).expand(BATCH, -1))


def test_gradient_reaches_kept_tokens_once_and_dropped_ones_not():
    x = torch.randn(LENGTH, BATCH, DIM, requires_grad=True)
    keep = random_keep()
    shorten_source(x, keep).x.sum().backward()
    assert torch.equal(x.grad, keep.t().unsqueeze(-1).float().expand_as(x))


def test_nothing_is_read_from_dropped_or_padded_places():
    x = torch.randn(LENGTH, BATCH, DIM)
    keep = random_keep()
    x[~keep.t()] = float("nan")
    assert torch.isfinite(shorten_source(x, keep).x).all()


def test_attention_goes_back_to_where_the_tokens_stood():
    keep = random_keep()
    short = shorten_source(torch.randn(LENGTH, BATCH, DIM), keep)
    scores = torch.randn(BATCH, 4, short.x.size(0)).masked_fill(short.padding_mask.unsqueeze(1), float("-inf"))
    attention = scores.softmax(dim=-1)
    restored = restore_positions(attention, short.positions, LENGTH)
    assert restored.shape == (BATCH, 4, LENGTH)
    torch.testing.assert_close(restored.sum(dim=-1), torch.ones(BATCH, 4))
    for row in range(BATCH):
        kept = keep[row].nonzero().squeeze(1)
        assert torch.equal(restored[row][:, kept], attention[row][:, : len(kept)])
        assert (restored[row][:, ~keep[row]] == 0).all()
