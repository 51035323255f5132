"""Laws of question answering: the dense path is fairseq's BART, batch mates do not matter, no answer is lost."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from factories import random_decisions, undecide
from fairseq.logging import metrics
from questions import ANSWERS, batch_windows, build_reader, build_squad_training, build_windows
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sd_fairseq.cost.path_flops import HeadShape, dense_flops, path_flops
from sd_fairseq.plugin.criterions.span_evaluator import SpanEvaluator
from sd_fairseq.plugin.models.span_head import SPAN_HEAD
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

BATCH = 9  # windows of the four questions


def read(model, sample, **options):
    """The head's logits [B, T, 2] and the model's extra."""
    return model(**sample["net_input"], classification_head_name=SPAN_HEAD, **options)


def evaluate(model, sample, smoothing=0.0):
    return SpanEvaluator(model, sample, 1, smoothing)


def test_the_batch_is_as_large_as_these_tests_take_it_to_be():
    sample = batch_windows()
    assert sample["nsentences"] == BATCH and len(set(sample["net_input"]["src_lengths"].tolist())) > 2
    assert 3 <= int(sample["target"][:, 0].gt(0).sum()) < BATCH  # windows with an answer and without


@torch.no_grad()
def test_keep_all_top_states_equal_fairseqs_bart_bit_for_bit():
    bart = build_reader("bart_base")
    twin = build_reader()
    twin.load_state_dict(bart.state_dict(), strict=True)
    net_input = batch_windows()["net_input"]
    expected = bart(**net_input, features_only=True)[0]
    assert torch.equal(twin(**net_input, features_only=True, path=PathRequest("dense"))[0], expected)
    scores = bart.classification_heads[SPAN_HEAD](expected)
    assert torch.equal(twin(**net_input, classification_head_name=SPAN_HEAD, path=PathRequest("dense"))[0], scores)


def test_one_end_and_both_ends_are_counted_and_each_ends_probabilities_sum_to_1():
    sample, generator = batch_windows(), torch.Generator().manual_seed(1)
    logits = torch.randn(*sample["candidates"].shape, 2, generator=generator)
    for row, (first, last) in enumerate(sample["target"].tolist()):  # both ends right, one end, none, and so on
        logits[row, first, 0] = 9.0 if row % 3 < 2 else -9.0
        logits[row, last, 1] = 9.0 if row % 3 == 0 else -9.0
    figures = evaluate(None, sample).quality((logits,)).figures
    assert int(figures["span_both_ends"]) == sum(row % 3 == 0 for row in range(BATCH))
    assert int(figures["span_one_end"]) == sum(row % 3 < 2 for row in range(BATCH))
    log_probs = evaluate(None, sample).log_probs((logits,))
    assert log_probs.shape == (2 * BATCH, logits.size(1))
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(2 * BATCH))
    for row in range(BATCH):
        for end in range(2):
            expected = logits[row, :, end].masked_fill(~sample["candidates"][row], float("-inf")).log_softmax(0)
            found, usable = log_probs[2 * row + end], sample["candidates"][row]
            torch.testing.assert_close(found[usable], expected[usable], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_batch_mates_and_their_decisions_change_no_logit_and_no_quality():
    model, sample = build_reader(), batch_windows()
    decisions = random_decisions(model.space, BATCH, 0.5)
    together = read(model, sample, path=PathRequest(decisions=decisions))[0]
    quality = evaluate(model, sample, 0.1).quality((together,)).per_example
    for row in range(BATCH):
        path = PathRequest(decisions=decisions.index_select(torch.tensor([row])))
        one = batch_windows([row])
        alone = read(model, one, path=path)[0]
        torch.testing.assert_close(together[row : row + 1, : alone.size(1)], alone, rtol=1e-4, atol=1e-5)
        single = evaluate(model, one, 0.1).quality((alone,))
        torch.testing.assert_close(single.per_example, quality[row : row + 1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_token_that_the_encoder_drops_is_scored_by_a_state_that_has_read_it():
    model, sample = build_reader(), batch_windows([2])
    strategies = [str(one) for one in model.space.token_strategies]
    choice = torch.tensor([strategies.index("last:30")])
    path = PathRequest(decisions=dataclasses.replace(model.space.keep_all(1, choice.device), token_choice=choice))
    logits = read(model, sample, path=path)[0]
    width = logits.size(1)
    place = width - 3
    net_input = sample["net_input"]
    assert net_input["prev_output_tokens"][0, place] == net_input["src_tokens"][0, place]  # the state's own token
    changed = batch_windows([2])
    decoder_input = changed["net_input"]["prev_output_tokens"].clone()
    decoder_input[0, place] += 1  # in the decoder only
    changed["net_input"]["prev_output_tokens"] = decoder_input
    found = read(model, changed, path=path)[0]
    assert found.shape == logits.shape == (1, width, 2)  # every token is scored, dropped or not
    assert torch.equal(found[0, :place], logits[0, :place])
    assert not torch.allclose(found[0, place], logits[0, place])


def traced(model, sample, path):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        extra = read(model, sample, path=path)[1]
    return counter.get_total_flops(), extra["decisions"]


@pytest.mark.parametrize("options", [{}, {"sd_cross_attention_apart": True}], ids=["together", "apart"])
def test_traced_flops_equal_the_closed_form_on_random_paths(options):
    model = build_reader(**options)
    model.encoder.policy, policy = None, model.encoder.policy  # the path is given, no policy runs
    for row in range(BATCH):
        sample = batch_windows([row])
        decisions = random_decisions(model.space, 1, 0.5)
        found, _ = traced(model, sample, PathRequest(decisions=decisions))
        evaluator = evaluate(model, sample)
        expected = path_flops("generation", evaluator.shape, model.space, decisions, evaluator.lengths(4))
        assert found == int(expected), model.space.describe(decisions, 0)
    model.encoder.policy = policy
    undecide(model)
    sample = batch_windows([1])
    found, decisions = traced(model, sample, PathRequest())
    evaluator = evaluate(model, sample)
    assert found == int(path_flops("generation", evaluator.shape, model.space, decisions, evaluator.lengths(1)))


def test_traced_flops_of_plain_bart_equal_the_dense_path():
    bart, model, sample = build_reader("bart_base"), build_reader(), batch_windows([0])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        bart.classification_heads[SPAN_HEAD](bart(**sample["net_input"], features_only=True)[0])
    evaluator = evaluate(model, sample)
    assert evaluator.shape.head == HeadShape((32, 2), every_token=True)
    expected = dense_flops("generation", evaluator.shape, model.space, evaluator.lengths(1))
    assert counter.get_total_flops() == int(expected)


@torch.no_grad()
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_quality_is_the_mean_cross_entropy_of_both_ends_over_the_context_and_no_answer(smoothing):
    model, sample = build_reader(), batch_windows()
    logits = read(model, sample, path=PathRequest("dense"))[0]
    quality = evaluate(model, sample, smoothing).score(PathRequest("dense"))[0]
    expected, smoothed = [], []
    for row in range(BATCH):
        places = sample["candidates"][row].nonzero().view(-1)
        target = [int((places == end).nonzero()) for end in sample["target"][row]]
        scores = logits[row, places].t()  # [2, candidates]
        expected.append(F.cross_entropy(scores, torch.tensor(target)))
        smoothed.append(F.cross_entropy(scores, torch.tensor(target), label_smoothing=smoothing))
    torch.testing.assert_close(quality.per_example, torch.stack(expected))
    torch.testing.assert_close(quality.loss, torch.stack(smoothed).sum())


@pytest.mark.parametrize("options", [{}, {"sd_score_function_flops": True}, {"sd_mode": "budget"}])
def test_an_update_moves_policy_backbone_and_head(options):
    training = build_squad_training(**options)
    policy, backbone = training.policy(), training.backbone()
    head = training.model.classification_heads[SPAN_HEAD].out_proj.weight.detach().clone()
    logged = training.update([batch_windows()])[0]
    assert logged["sample_size"] == BATCH
    assert not torch.equal(training.policy(), policy) and not torch.equal(training.backbone(), backbone)
    assert not torch.equal(training.model.classification_heads[SPAN_HEAD].out_proj.weight, head)


def test_two_micro_batches_make_the_same_update_as_one_batch():
    whole, halves = build_squad_training(), build_squad_training()
    whole.update([batch_windows()])
    halves.update([batch_windows(range(4)), batch_windows(range(4, BATCH))])
    torch.testing.assert_close(whole.policy(), halves.policy())
    torch.testing.assert_close(whole.backbone(), halves.backbone(), rtol=1e-4, atol=1e-6)


def test_the_head_learns_the_answers():
    training, sample = build_squad_training(), batch_windows()
    training.model.policy_learner = None  # the deployed path is trained
    optimizer = torch.optim.Adam(training.model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        training.criterion(training.model.train(), sample)[0].backward()
        optimizer.step()
    training.model.eval()
    with metrics.aggregate() as shown:
        training.task.reduce_metrics([training.criterion(training.model, sample)[2]], training.criterion)
    assert shown.get_smoothed_values()["span_both_ends"] >= 90


def test_the_head_survives_barts_checkpoint_handling():
    model, other = build_reader(), build_reader()
    torch.nn.init.zeros_(other.classification_heads[SPAN_HEAD].out_proj.weight)
    other.load_state_dict(model.state_dict(), strict=True)
    weights = [one.classification_heads[SPAN_HEAD].out_proj.weight for one in (model, other)]
    assert torch.equal(*weights)
    plain = {key: value for key, value in model.state_dict().items() if "classification_heads" not in key}
    other.load_state_dict(plain, strict=True)  # BART's own checkpoint: the head stays as it is
    assert torch.equal(*weights)
    without = build_reader()
    del without.classification_heads[SPAN_HEAD]
    without.load_state_dict(model.state_dict(), strict=True)  # another task leaves the head out
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))


def test_windows_together_hold_every_context_token_and_the_whole_answer_somewhere():
    from questions import build_questions

    questions = build_questions()
    windows = build_windows()
    for index, question in enumerate(questions):
        mine = [window for window in windows if window.question == index]
        covered = {place for window in mine for begin, end in window.spans for place in range(begin, end)}
        assert covered == set(range(len(question.context)))
        found = [
            question.context[window.spans[a - window.first][0] : window.spans[b - window.first][1]]
            for window in mine
            for a, b in [window.target]
            if a
        ]
        assert [text.strip(" .,") for text in found] == [ANSWERS[index]] * len(found)
        assert bool(found) == (ANSWERS[index] is not None)
    assert max(window.tokens.numel() for window in windows) == 60
