"""Cached decoding and beam search follow the decided paths exactly as teacher forcing does."""

import pytest
import torch
from factories import T5_VARIANTS, along, build_model, generate, pick, random_batch, random_decisions, undecide

from sd_fairseq.decision.token_strategies import kept_token_mask
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
VARIANTS = {
    "together": {},
    "cross-attention apart": {"sd_cross_attention_apart": True},
    "skip keeps LayerNorm": {"sd_skip_keeps_layer_norm": True},
    "first attention always runs": {"sd_always_run_attention": 1},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    **T5_VARIANTS,
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(variant, **more):
    return build_model(**VARIANTS[variant], **more)


def teacher_force(model, batch, decisions):
    return model(batch.src_tokens, batch.src_lengths, batch.prev_output_tokens, path=PathRequest(decisions=decisions))


def step_by_step(model, tokens, encoded):
    """Decodes [R, T] tokens with a cache; returns logits [R, T, V] and attention [R, T, S]."""
    state, logits, attention = {}, [], []
    for step in range(1, tokens.size(1) + 1):
        x, extra = model.decoder(tokens[:, :step], encoder_out=encoded, incremental_state=state)
        logits.append(x)
        attention.append(extra["attn"][0])
    return torch.cat(logits, dim=1), torch.cat(attention, dim=1)


@torch.no_grad()
@every_variant
def test_cached_decoding_equals_uncached_decoding(variant):
    model, batch = build(variant), random_batch()
    for keep_probability in (0.2, 0.6):
        decisions = random_decisions(model.space, 6, keep_probability)
        expected, extra = teacher_force(model, batch, decisions)
        logits, attention = step_by_step(model, batch.prev_output_tokens, model.encoder(**along(batch, decisions)))
        torch.testing.assert_close(logits, expected, **CLOSE)
        torch.testing.assert_close(attention, extra["attn"][0], **CLOSE)


@torch.no_grad()
@every_variant
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
def test_rows_that_share_a_sentence_decode_as_if_each_had_its_own(variant, cached):
    model, batch, beam = build(variant), random_batch(), 3
    encoded = model.encoder(**along(batch, random_decisions(model.space, 6)))
    apart = model.encoder.reorder_encoder_out(encoded, torch.arange(6).repeat_interleave(beam))
    tokens = torch.randint(4, 100, (6 * beam, 6))
    expected, extra = model.decoder(tokens, encoder_out=apart)
    if cached:
        logits, attention = step_by_step(model, tokens, encoded)
    else:
        logits, more = model.decoder(tokens, encoder_out=encoded)
        attention = more["attn"][0]
    torch.testing.assert_close(logits, expected, **CLOSE)
    torch.testing.assert_close(attention, extra["attn"][0], **CLOSE)


@torch.no_grad()
@every_variant
def test_caches_follow_a_search_that_reorders_and_removes(variant):
    """Random reorderings; at the end every row must stand where decoding its own history anew would put it."""
    model, batch = build(variant), random_batch(target_length=6)
    decisions, beam = random_decisions(model.space, 6, 0.5), 2
    encoded = model.encoder(**along(batch, decisions))
    rows = torch.arange(6).repeat_interleave(beam)  # the sentence of every row
    tokens, state = torch.randint(4, 100, (6 * beam, 1)), {}
    for stay in ([0, 1, 2, 3, 4, 5], [0, 2, 3, 4, 5], [0, 2, 3, 4, 5], [2, 5], [5]):
        logits, extra = model.decoder(tokens, encoder_out=encoded, incremental_state=state)
        history = model.encoder.reorder_encoder_out(encoded, rows)
        expected, more = model.decoder(tokens, encoder_out=history)
        torch.testing.assert_close(logits[:, -1], expected[:, -1], **CLOSE)
        torch.testing.assert_close(extra["attn"][0][:, -1], more["attn"][0][:, -1], **CLOSE)
        present = rows.view(-1, beam)[:, 0].tolist()
        order = torch.cat([present.index(s) * beam + torch.randint(beam, (beam,)) for s in stay])
        model.decoder.reorder_incremental_state_scripting(state, order)
        tokens = torch.cat([tokens[order], torch.randint(4, 100, (len(order), 1))], dim=1)
        rows = rows[order]


@torch.no_grad()
@every_variant
@pytest.mark.parametrize("beam", [1, 4])
def test_searching_a_batch_equals_searching_one_by_one(variant, beam):
    model, batch = build(variant), random_batch()
    decisions = random_decisions(model.space, 6)
    together = generate([model], along(batch, decisions), beam)
    steps = {max(len(one["tokens"]) for one in group) for group in together}
    assert len(steps) > 1, "some sentences should leave the search before others"
    for row in range(6):
        own = decisions.index_select(torch.tensor([row]))
        alone = generate([model], along(pick(batch, row), own), beam)[0]
        assert len(alone) == len(together[row])
        for mine, theirs in zip(alone, together[row]):
            assert torch.equal(mine["tokens"], theirs["tokens"])
            torch.testing.assert_close(mine["score"], theirs["score"], atol=1e-4, rtol=0)


@torch.no_grad()
@every_variant
@pytest.mark.parametrize("beam", [1, 4])
def test_every_hypothesis_scores_what_teacher_forcing_gives_it(variant, beam):
    model, batch = build(variant), random_batch()
    decisions = random_decisions(model.space, 6)
    eos = model.decoder.dictionary.eos()
    for row, group in enumerate(generate([model], along(batch, decisions), beam)):
        own, one = decisions.index_select(torch.tensor([row])), pick(batch, row)
        for hypothesis in group:
            tokens = hypothesis["tokens"].unsqueeze(0)
            previous = torch.cat([torch.tensor([[eos]]), tokens[:, :-1]], dim=1)
            log_probs = teacher_force(model, one._replace(prev_output_tokens=previous), own)[0].log_softmax(dim=-1)
            expected = log_probs.gather(2, tokens.unsqueeze(2)).view(-1)
            torch.testing.assert_close(hypothesis["positional_scores"], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_greedy_search_takes_the_most_probable_word_of_uncached_decoding():
    model, batch = build("together"), random_batch((9, 14, 5))
    decisions = random_decisions(model.space, 3)
    dictionary = model.decoder.dictionary
    for row, group in enumerate(generate([model], along(batch, decisions), 1, max_len_b=8)):
        own, one = decisions.index_select(torch.tensor([row])), pick(batch, row)
        previous = torch.tensor([[dictionary.eos()]])
        for word in group[0]["tokens"][:-1]:  # the last one may be forced
            scores = teacher_force(model, one._replace(prev_output_tokens=previous), own)[0][0, -1]
            scores[dictionary.pad()] = float("-inf")
            scores[dictionary.eos()] = float("-inf") if previous.size(1) == 1 else scores[dictionary.eos()]
            assert scores.argmax() == word
            previous = torch.cat([previous, word.view(1, 1)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("policy", ["network", "layerwise", "random"])
def test_generation_takes_the_deployed_path(policy):
    model, batch = build_model(sd_policy=policy, sd_random_keep=0.5), random_batch()
    if policy != "random":
        undecide(model)
    _, extra = model(batch.src_tokens, batch.src_lengths, batch.prev_output_tokens)
    decisions = extra["decisions"]
    assert decisions.count_distinct_paths() > 3
    for mine, theirs in zip(generate([model], batch.net_input, 3), generate([model], along(batch, decisions), 3)):
        assert all(torch.equal(one["tokens"], other["tokens"]) for one, other in zip(mine, theirs))


@torch.no_grad()
def test_teacher_forcing_after_a_search_is_unchanged():
    model, batch = build("together"), random_batch()
    decisions = random_decisions(model.space, 6)
    before, extra = teacher_force(model, batch, decisions)
    for beam in (4, 1, 3):
        generate([model], along(batch, decisions), beam)
        after, more = teacher_force(model, batch, decisions)
        assert torch.equal(after, before)
        assert torch.equal(more["attn"][0], extra["attn"][0])


@torch.no_grad()
@pytest.mark.parametrize("first,second", [(1, 4), (4, 1), (2, 3)])
def test_a_generator_is_right_although_another_one_was_built_after_it(first, second):
    from fairseq.sequence_generator import SequenceGenerator

    model, batch = build("together"), random_batch()
    sample = {"net_input": along(batch, random_decisions(model.space, 6))}
    expected = generate([model], sample["net_input"], first)
    generator = SequenceGenerator([model], model.decoder.dictionary, beam_size=first, max_len_b=12)
    SequenceGenerator([model], model.decoder.dictionary, beam_size=second)
    for mine, theirs in zip(generator.generate([model], sample), expected):
        assert torch.equal(mine[0]["tokens"], theirs[0]["tokens"])
        torch.testing.assert_close(mine[0]["score"], theirs[0]["score"])


@torch.no_grad()
@every_variant
def test_attention_is_spread_back_to_the_original_positions(variant):
    model, batch = build(variant), random_batch()
    decisions = random_decisions(model.space, 6)
    padding = batch.src_tokens.eq(model.encoder.padding_idx)
    dropped = ~kept_token_mask(padding, decisions.token_choice, model.space.token_strategies)
    attention = teacher_force(model, batch, decisions)[1]["attn"][0]
    assert attention.shape == (6, 8, batch.src_tokens.size(1))
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(6, 8))
    assert (attention.transpose(1, 2)[dropped] == 0).all()
    for row, group in enumerate(generate([model], along(batch, decisions), 3)):
        for hypothesis in group:
            spread = hypothesis["attention"]  # [S, steps]
            torch.testing.assert_close(spread.sum(dim=0), torch.ones(len(hypothesis["tokens"])))
            assert (spread[dropped[row]] == 0).all()


@torch.no_grad()
def test_attention_of_a_layer_that_an_example_skips_is_0():
    model, batch = build("together"), random_batch()
    decisions = random_decisions(model.space, 6, keep_probability=0.5)
    _, extra = model.decoder(
        batch.prev_output_tokens, encoder_out=model.encoder(**along(batch, decisions)), alignment_layer=0
    )
    kept = decisions.decoder_cross_attention[:, 0]
    assert kept.any() and not kept.all()
    torch.testing.assert_close(extra["attn"][0].sum(dim=-1), kept.float().unsqueeze(1).expand(6, 8))
