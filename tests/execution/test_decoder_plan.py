import pytest
import torch
from factories import random_decisions

from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.execution.decoder_plan import DecoderPlan, compact_order

SPACE = DecisionSpace.build(3, 5, cross_attention_apart=True)


def random_order(sentences, beam):
    """What a beam search asks for: some sentences stay, in order, and every row continues one of its sentence's rows.

    Returns:
        The sentences that stay [B'] and, sentence-major, the old row of every new row [B' * beam].
    """
    stay = (torch.rand(sentences) < 0.7).nonzero().squeeze(1)
    stay = stay if len(stay) else torch.tensor([sentences - 1])
    rows = stay.unsqueeze(1) * beam + torch.randint(beam, (len(stay), beam))
    return stay, rows.reshape(-1)


def rows_as_list(rows, count):
    return list(range(count)) if rows is None else rows.tolist()


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_a_plan_names_the_rows_that_keep_each_sublayer(beam):
    decisions = random_decisions(SPACE, 4)
    plan = DecoderPlan.build(decisions, 4 * beam)
    assert plan.beam == beam and plan.num_rows == 4 * beam
    for layer in range(5):
        for rows, keep in (
            (plan.attention_rows[layer], decisions.decoder_attention),
            (plan.ffn_rows[layer], decisions.decoder_ffn),
        ):
            expected = [s * beam + h for s in range(4) for h in range(beam) if keep[s, layer]]
            assert rows_as_list(rows, 4 * beam) == expected
        kept = [s for s in range(4) if decisions.decoder_cross_attention[s, layer]]
        assert rows_as_list(plan.cross_sentences[layer], 4) == kept


@pytest.mark.parametrize("rows,sentences", [(7, 2), (1, 2), (5, 4)])
def test_rows_that_do_not_divide_among_the_sentences_are_an_error_naming_both(rows, sentences):
    with pytest.raises(ValueError, match=f"{rows} decoder rows.* {sentences} sentences"):
        DecoderPlan.build(random_decisions(SPACE, sentences), rows)


@pytest.mark.parametrize("beam", [1, 3])
def test_sentence_order_tells_which_sentences_stay(beam):
    plan = DecoderPlan.build(random_decisions(SPACE, 6), 6 * beam)
    for _ in range(20):
        stay, order = random_order(6, beam)
        assert plan.sentence_order(order).tolist() == stay.tolist()
        assert plan.keeps_sentences(plan.sentence_order(order)) == (stay.tolist() == list(range(6)))


@pytest.mark.parametrize("beam", [1, 3])
def test_a_reordered_plan_is_the_plan_of_the_reordered_sentences(beam):
    decisions = random_decisions(SPACE, 6)
    positions = torch.randint(9, (6, 4))
    plan = DecoderPlan.build(decisions, 6 * beam, positions, source_length=9)
    for order in ([0, 2, 5], [5, 1], [3], [0, 1, 2, 3, 4, 5]):
        chosen = torch.tensor(order)
        reordered = plan.reorder(chosen)
        expected = DecoderPlan.build(decisions.index_select(chosen), len(order) * beam)
        assert reordered.beam == beam and reordered.source_length == 9
        assert torch.equal(reordered.positions, positions[chosen])
        assert reordered.decisions.same_path(expected.decisions).all()
        for name in ("attention_rows", "cross_sentences", "ffn_rows"):
            for mine, theirs in zip(getattr(reordered, name), getattr(expected, name)):
                assert rows_as_list(mine, -1) == rows_as_list(theirs, -1)


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_compact_order_moves_a_cache_of_kept_rows_as_brute_force_would(beam):
    for _ in range(50):
        sentences = int(torch.randint(1, 7, ()))
        decisions = random_decisions(SPACE, sentences, keep_probability=float(torch.rand(())))
        old = DecoderPlan.build(decisions, sentences * beam)
        stay, order = random_order(sentences, beam)
        new = old.reorder(old.sentence_order(order))
        for layer in range(5):
            check_compact_order(old.attention_rows[layer], new.attention_rows[layer], order, old.num_rows)
            check_compact_order(old.cross_sentences[layer], new.cross_sentences[layer], stay, sentences)


def check_compact_order(old_rows, new_rows, order, num_old):
    """A cache entry is the number of its row; after the order, kept row r must hold what row order[r] held."""
    cache = torch.tensor(rows_as_list(old_rows, num_old), dtype=torch.long)
    moved = cache[compact_order(old_rows, new_rows, order, num_old)]
    assert moved.tolist() == [int(order[row]) for row in rows_as_list(new_rows, len(order))]


def test_a_search_that_keeps_everything_orders_the_whole_cache():
    order = torch.tensor([1, 0, 2, 2])
    assert compact_order(None, None, order, 4) is order
