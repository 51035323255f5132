"""Caches that are never reordered answer as caches that are; slots follow removals."""

import random

import pytest
import torch

from sd_fairseq.execution.beam_cache import FIRST_STEPS, AncestryMask, SelfAttentionCache, Slots, attend, for_heads

HEADS, DIM = 2, 4


def plain_attention(queries, keys, values):
    """[K, Q, H, D] over [K, N, H, D], the textbook's way: [K * Q, H * D]."""
    weights = torch.einsum("bqhd,bnhd->bhqn", queries, keys).softmax(dim=-1)
    return torch.einsum("bhqn,bnhd->bqhd", weights, values).reshape(-1, HEADS * DIM)


def test_attend_is_attention_and_masks():
    queries, keys, values = (torch.randn(3, n, HEADS, DIM) for n in (2, 5, 5))
    mask = torch.zeros(3, 1, 5)
    mask[..., 4:] = float("-inf")
    args = queries, keys.permute(0, 2, 3, 1).flatten(0, 1), values.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(attend(*args, None), plain_attention(queries, keys, values))
    masked = attend(*args, for_heads(mask, HEADS))
    torch.testing.assert_close(masked, plain_attention(queries, keys[:, :4], values[:, :4]))


@pytest.mark.parametrize("beam", [1, 3])
def test_in_place_cache_equals_a_cache_that_is_reordered(beam):
    """Over more steps than the first allocation holds, with sentences leaving on the way."""
    sentences = 4
    device = torch.device("cpu")
    cache = SelfAttentionCache(sentences, HEADS, DIM, beam, torch.float32, device)
    ancestry = AncestryMask(sentences, beam, torch.float32, device)
    history = torch.zeros(sentences * beam, 0, HEADS, DIM), torch.zeros(sentences * beam, 0, HEADS, DIM)
    for step in range(2 * FIRST_STEPS + 5):
        shape = (sentences, beam, HEADS, DIM)
        queries, keys, values = torch.randn(shape), torch.randn(shape), torch.randn(shape)
        new = (one.reshape(sentences * beam, 1, HEADS, DIM) for one in (keys, values))
        history = tuple(torch.cat([old, one], dim=1) for old, one in zip(history, new))
        expected = plain_attention(queries.reshape(-1, 1, HEADS, DIM), *history)
        cache.append(torch.stack([keys, values]).transpose(2, 3), step)
        found = cache.attend(queries, step, for_heads(ancestry.upto(step), HEADS) if beam > 1 else None)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        if step in (10, FIRST_STEPS + 3):  # the second sentence leaves, the last one takes its place
            cache.move(1, sentences - 1, sentences - 1)
            ancestry.move(1, sentences - 1, sentences - 1)
            rows = torch.arange(sentences * beam).view(sentences, beam)
            rows = torch.cat([rows[:1], rows[-1:], rows[2:-1]]).reshape(-1)
            history, sentences = tuple(one[rows] for one in history), sentences - 1
        parents = torch.randint(beam, (sentences, beam))
        ancestry.reorder(parents, step + 1)
        order = (parents + torch.arange(sentences).unsqueeze(1) * beam).reshape(-1)
        history = tuple(one[order] for one in history)


@pytest.mark.parametrize("seed", range(20))
def test_slots_name_the_sentences_that_a_cache_holds(seed):
    """A cache moved as told holds, at every place, the sentence whose slot stands there."""
    rng = random.Random(seed)
    count = 7
    sentence_in_slot = list(range(count))
    kept = sorted(rng.sample(range(count), rng.randint(0, count)))
    slots, cache = Slots(None if len(kept) == count else list(kept)), list(kept)
    while sentence_in_slot:
        last = len(sentence_in_slot) - 1
        slot = rng.randint(0, last)
        target, source, left = slots.remove(slot, last)
        if target != source:
            cache[target] = cache[source]
        del cache[left:]
        sentence_in_slot[slot] = sentence_in_slot[last]
        sentence_in_slot.pop()
        named = sentence_in_slot if slots.kept is None else [sentence_in_slot[one] for one in slots.kept]
        assert cache == named
        assert sorted(cache) == sorted(set(kept) & set(sentence_in_slot))


def test_rows_of_slots_are_their_hypotheses():
    assert Slots([2, 0]).rows(3, torch.device("cpu")).tolist() == [6, 7, 8, 0, 1, 2]
    assert Slots(None).rows(3, torch.device("cpu")) is None
