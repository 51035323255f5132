"""Laws of classification: the dense path is fairseq's BART, batch mates do not matter, what is skipped is not run."""

import dataclasses

import pytest
import torch
from factories import random_decisions, undecide
from sentences import HEAD, build_classifier, build_sentences, pick_sentences
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sd_fairseq.cost.path_flops import dense_flops, path_flops
from sd_fairseq.plugin.criterions.sentence_evaluator import SentenceEvaluator
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.classification import state_of_last_end
from sd_fairseq.plugin.models.hub_interface import roll_to_the_right
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

VARIANTS = {
    "together": {},
    "cross-attention apart": {"sd_cross_attention_apart": True},
    "uneven stacks": {"decoder_layers": 2, "decoder_ffn_embed_dim": 48},
}


def classify(model, sample, **options):
    """The head's logits [B, K] and the model's extra."""
    return model(**sample["net_input"], features_only=True, classification_head_name=HEAD, **options)


@torch.no_grad()
@pytest.mark.parametrize("ends", [None, [2] * 8], ids=["one sentence", "pairs"])
def test_keep_all_logits_equal_fairseqs_bart_bit_for_bit(ends):
    bart = build_classifier("bart_base")
    twin = build_classifier()
    twin.load_state_dict(bart.state_dict(), strict=True)
    sample = build_sentences(ends=ends)
    expected = classify(bart, sample)[0]
    assert torch.equal(classify(twin, sample, path=PathRequest("dense"))[0], expected)
    assert len(torch.unique(expected, dim=0)) == 8  # the rows differ, so that a wrong row would show


@torch.no_grad()
@pytest.mark.parametrize("ends", [[1] * 8, [1, 2, 1, 3, 2, 1, 1, 2]], ids=["one end each", "unequal ends"])
def test_batch_mates_and_their_decisions_change_no_answer(ends):
    model, sample = build_classifier(), build_sentences(ends=ends)
    decisions = random_decisions(model.space, 8, 0.5)
    together = classify(model, sample, path=PathRequest(decisions=decisions))[0]
    for row in range(8):
        one = decisions.index_select(torch.tensor([row]))
        alone = classify(model, pick_sentences(sample, [row]), path=PathRequest(decisions=one))[0]
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_policys_own_decisions_do_not_depend_on_batch_mates():
    model, sample = build_classifier(), build_sentences()
    undecide(model)
    together = classify(model, sample)[1]["decisions"]
    assert together.count_distinct_paths() > 1
    for row in range(8):
        alone = classify(model, pick_sentences(sample, [row]))[1]["decisions"]
        assert bool(alone.same_path(together.index_select(torch.tensor([row])))[0])


@torch.no_grad()
def test_the_decoder_reads_the_tokens_that_the_encoder_drops():
    model, sample = build_classifier(), build_sentences([20])
    strategies = [str(one) for one in model.space.token_strategies]
    choice = torch.tensor([strategies.index("last:30")])
    path = PathRequest(decisions=dataclasses.replace(model.space.keep_all(1, choice.device), token_choice=choice))
    logits, extra = classify(model, sample, path=path)
    assert all(state.size(0) == 20 for state in extra["inner_states"])
    changed = build_sentences([20])
    changed["net_input"]["prev_output_tokens"][0, 18] += 1  # token 17 from 0, dropped from the source
    assert not torch.allclose(logits, classify(model, changed, path=path)[0])


def traced(model, sample, path):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        extra = classify(model, sample, path=path)[1]
    return counter.get_total_flops(), extra["decisions"]


def closed_form(model, sample, decisions):
    evaluator = SentenceEvaluator(model, sample, model.encoder.padding_idx, 0.0, HEAD)
    return path_flops("generation", evaluator.shape, model.space, decisions, evaluator.lengths(4))


@pytest.mark.parametrize("variant", VARIANTS)
def test_traced_flops_equal_the_closed_form_on_random_paths(variant):
    model = build_classifier(**VARIANTS[variant])
    policy = model.encoder.policy
    for length in (19, 7, 2) * 3:
        sample = build_sentences([length])
        decisions = random_decisions(model.space, 1, 0.5)
        model.encoder.policy = None  # the path is given, no policy runs
        found, _ = traced(model, sample, PathRequest(decisions=decisions))
        assert found == int(closed_form(model, sample, decisions)), model.space.describe(decisions, 0)
        model.encoder.policy = policy


def test_traced_flops_with_the_policy_at_work_equal_the_closed_form():
    model = build_classifier()
    undecide(model)
    for length in (19, 8, 3):
        sample = build_sentences([length])
        found, decisions = traced(model, sample, PathRequest())
        assert found == int(closed_form(model, sample, decisions))


def test_traced_flops_of_plain_bart_equal_the_dense_path():
    bart, model, sample = build_classifier("bart_base"), build_classifier(), build_sentences([17])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        bart(**sample["net_input"], features_only=True, classification_head_name=HEAD)
    evaluator = SentenceEvaluator(model, sample, model.encoder.padding_idx, 0.0, HEAD)
    assert counter.get_total_flops() == int(
        dense_flops("generation", evaluator.shape, model.space, evaluator.lengths(1))
    )


def test_a_row_without_an_end_is_refused_and_not_read_elsewhere():
    tokens = torch.tensor([[5, 2, 1], [5, 6, 7]])
    with pytest.raises(InputError, match="row 1 .* no end-of-sentence"):
        state_of_last_end(torch.zeros(2, 3, 4), tokens, 2)


def test_the_hub_rolls_a_padded_batch_as_training_does():
    sample = build_sentences()
    rolled = roll_to_the_right(sample["net_input"]["src_tokens"], 1)
    assert torch.equal(rolled, sample["net_input"]["prev_output_tokens"])
