"""Decoder layers that a rule takes away step by step: the laws of decoding hold as they do for decisions."""

import dataclasses

import pytest
import torch
from factories import T5_VARIANTS, along, build_model, generate, pick, random_batch, random_decisions
from fairseq.sequence_generator import SequenceGenerator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sd_fairseq.cost.layer_work import LayerWork, scheduled_work
from sd_fairseq.cost.path_flops import Lengths, dense_flops, path_flops
from sd_fairseq.decision.rules import DecisionRule
from sd_fairseq.execution.native import library
from sd_fairseq.plugin.generation import native_search
from sd_fairseq.plugin.generation.fast_model import FastModel
from sd_fairseq.plugin.generation.fast_weights import FeedForward
from sd_fairseq.plugin.guards.errors import InputError

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BY_POSITION = {
    "hsd": "hsd:min=2,over=5",
    "hsd, all at once": "hsd:min=2,over=1",
    "skipdecode": "skipdecode:max=4,min=2,over=6",
    "skipdecode, no bottom": "skipdecode:max=3,min=1,over=4,bottom=0",
    "uls": "uls:speedup=1.6",
}
# thresholds at which untrained models leave after every layer now and then
BY_CONFIDENCE = {
    "calm, max": "calm:confidence=max,threshold=0.55,length=6",
    "calm, gap": "calm:threshold=0.4,length=6",
    "calm, cosine": "calm:confidence=cosine,threshold=0.8,length=6",
    "calm, later": "calm:threshold=0.3,first=2",
    "free": "free:exit=1,threshold=0.4",
    "free, later": "free:exit=3,threshold=0.4",
}
MODELS = {
    "BART": {},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "skip keeps LayerNorm": {"sd_skip_keeps_layer_norm": True},
}
every_rule = pytest.mark.parametrize("rule", {**BY_POSITION, **BY_CONFIDENCE})
by_position = pytest.mark.parametrize("rule", BY_POSITION)
by_confidence = pytest.mark.parametrize("rule", BY_CONFIDENCE)


def build(rule, seed=1, **options):
    torch.manual_seed(seed)
    text = {**BY_POSITION, **BY_CONFIDENCE}.get(rule, rule)
    model = build_model(sd_policy="dense", sd_rule=text, decoder_layers=5, max_target_positions=160, **options)
    head = getattr(model.decoder, "output_projection", None) or model.decoder.embed_tokens
    with torch.no_grad():  # so sure that tokens leave, but not that all hypotheses end at once
        head.weight.mul_(2.2)
        head.weight[model.decoder.dictionary.eos()] *= 0.4
    return model


def beams_of(rule):
    return (1,) if rule.startswith("free") else (1, 4)


def step_by_step(model, tokens, encoded):
    state = {}
    steps = range(1, tokens.size(1) + 1)
    return torch.cat([model.decoder(tokens[:, :n], encoded, incremental_state=state)[0] for n in steps], dim=1)


def decode_and_leave(model, batch, tokens, lengths):
    """Decodes given tokens [R, T] with a cache; every sentence leaves after its own number of steps.

    Returns logits of every step, the sentences present at every step, and the counts of the search.
    """
    log, state, found, present = [], {}, [], list(range(len(lengths)))
    encoded, beam = model.encoder(**batch.net_input, decision_log=log), tokens.size(0) // len(lengths)
    for step in range(1, max(lengths) + 1):
        stay = [sentence for sentence in present if lengths[sentence] >= step]
        if stay != present:
            order = [present.index(sentence) * beam + row for sentence in stay for row in range(beam)]
            model.decoder.reorder_incremental_state_scripting(state, torch.tensor(order))
            present = stay
        rows = [sentence * beam + row for sentence in present for row in range(beam)]
        logits, _ = model.decoder(tokens[rows, :step], encoded, incremental_state=state)
        found.append((present, logits[:, 0]))
    return found, next((one for one in log if isinstance(one, LayerWork)), None)


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
@every_rule
def test_cached_decoding_equals_uncached_decoding(rule, kind):
    model, batch = build(rule, **MODELS[kind]), random_batch(target_length=10)
    expected = model(batch.src_tokens, batch.src_lengths, batch.prev_output_tokens)[0]
    found = step_by_step(model, batch.prev_output_tokens, model.encoder(**batch.net_input))
    torch.testing.assert_close(found, expected, **CLOSE)
    model.decoder.rule = DecisionRule()
    dense = model(batch.src_tokens, batch.src_lengths, batch.prev_output_tokens)[0]
    assert not torch.allclose(dense, expected, atol=1e-2), "the rule should change the output"


@torch.no_grad()
@by_position
def test_cached_decoding_equals_uncached_decoding_on_top_of_decisions(rule):
    model, batch = build(rule), random_batch(target_length=10)
    decided = along(batch, random_decisions(model.space, 6, 0.6))
    expected = model(**decided, prev_output_tokens=batch.prev_output_tokens)[0]
    found = step_by_step(model, batch.prev_output_tokens, model.encoder(**decided))
    torch.testing.assert_close(found, expected, **CLOSE)


@torch.no_grad()
@by_confidence
def test_tokens_leave_at_different_layers(rule):
    """What the other laws are worth: with these models and thresholds some tokens leave, and some do not."""
    model, batch = build(rule), random_batch(target_length=10)
    _, work = decode_and_leave(model, batch, batch.prev_output_tokens, [10] * 6)
    assert int(work.given.sum()) == 60
    tokens, heads = work.tokens.sum(dim=0).tolist(), int(work.heads.sum())
    assert tokens[0] == 60 and tokens == sorted(tokens, reverse=True) and tokens[-1] > 0
    if rule.startswith("free"):
        assert 60 < heads < 120, "one head a token, another one where it stays"
    else:
        assert tokens[-1] < 60 and [60 - one for one in tokens] == work.filled.sum(dim=0).tolist()


@torch.no_grad()
@every_rule
def test_caches_follow_a_search_that_reorders_and_removes(rule):
    """Random reorderings; at the end every row must stand where decoding its own history anew would put it."""
    model, batch, beam = build(rule), random_batch(), 1 if rule.startswith("free") else 2
    encoded = model.encoder(**batch.net_input)
    rows = torch.arange(6).repeat_interleave(beam)  # the sentence of every row
    tokens, state = torch.randint(4, 100, (6 * beam, 1)), {}
    for stay in ([0, 1, 2, 3, 4, 5], [0, 2, 3, 4, 5], [0, 2, 3, 4, 5], [2, 3, 5], [2, 3, 5], [2, 5], [5]):
        logits, _ = model.decoder(tokens, encoder_out=encoded, incremental_state=state)
        history = model.encoder.reorder_encoder_out(encoded, rows)
        expected, _ = model.decoder(tokens, encoder_out=history)
        torch.testing.assert_close(logits[:, -1], expected[:, -1], **CLOSE)
        present = rows.view(-1, beam)[:, 0].tolist()
        order = torch.cat([present.index(s) * beam + torch.randint(beam, (beam,)) for s in stay])
        model.decoder.reorder_incremental_state_scripting(state, order)
        tokens = torch.cat([tokens[order], torch.randint(4, 100, (len(order), 1))], dim=1)
        rows = rows[order]


@torch.no_grad()
@every_rule
def test_every_hypothesis_scores_what_teacher_forcing_gives_it(rule):
    model, batch = build(rule), random_batch()
    eos = model.decoder.dictionary.eos()
    for beam in beams_of(rule):
        for row, group in enumerate(generate([model], batch.net_input, beam, max_len_b=8)):
            one = pick(batch, row)
            for hypothesis in group:
                tokens = hypothesis["tokens"].unsqueeze(0)
                previous = torch.cat([torch.tensor([[eos]]), tokens[:, :-1]], dim=1)
                log_probs = model(one.src_tokens, None, previous)[0].log_softmax(dim=-1)
                expected = log_probs.gather(2, tokens.unsqueeze(2)).view(-1)
                torch.testing.assert_close(hypothesis["positional_scores"], expected, atol=1e-4, rtol=0)


@torch.no_grad()
@every_rule
def test_searching_a_batch_equals_searching_one_by_one(rule):
    model, batch = build(rule), random_batch()
    for beam in beams_of(rule):
        together = generate([model], batch.net_input, beam, max_len_b=8)
        for row in range(6):
            check_same([together[row]], generate([model], pick(batch, row).net_input, beam, max_len_b=8))


def check_same(expected, found):
    assert len(expected) == len(found)
    for group, other in zip(expected, found):
        assert [one["tokens"].tolist() for one in group] == [one["tokens"].tolist() for one in other]
        for one, same in zip(group, other):
            torch.testing.assert_close(same["positional_scores"], one["positional_scores"], atol=1e-4, rtol=0)


@torch.no_grad()
@by_position
@pytest.mark.parametrize("kind", {**MODELS, **T5_VARIANTS})
@pytest.mark.parametrize("steps", ["pytorch", "native"])
def test_fast_equals_fairseq(rule, kind, steps, monkeypatch):
    """Also on top of decisions that differ in a batch, in searches that remove sentences, past the first cache."""
    if steps == "pytorch":
        monkeypatch.setenv(library.SWITCH, "0")
    elif library.load() is None:
        pytest.skip("the native decoder step cannot be had here")
    monkeypatch.setattr(native_search, "MOST_ROWS", 10**6)
    model, batch = build(rule, **{**MODELS, **T5_VARIANTS}[kind]), random_batch()
    paths = along(batch, random_decisions(model.space, 6, 0.7))
    for net_input, beam, options in (
        (batch.net_input, 1, {}),
        (batch.net_input, 4, {}),
        (paths, 3, {}),
        (paths, 2, {"min_len": 66, "max_len_b": 70} if kind == "BART" else {"temperature": 1.5}),
    ):
        options = {"max_len_b": 9, **options}
        found = []
        for one in ([model], FastModel(model)):
            generator = SequenceGenerator(one, model.decoder.dictionary, beam, **options)
            found.append(generator.generate([model], {"net_input": dict(net_input)}))
        check_same(*found)


@torch.no_grad()
@by_confidence
@pytest.mark.parametrize("kind", MODELS)
def test_fast_equals_fairseq_where_tokens_leave(rule, kind):
    """Hypotheses, and what every layer ran."""
    model, batch = build(rule, **MODELS[kind]), random_batch()
    for beam in beams_of(rule):
        found, logs = [], []
        for one in ([model], FastModel(model)):
            generator = SequenceGenerator(one, model.decoder.dictionary, beam, max_len_b=8)
            logs.append([])
            sample = {"net_input": {**batch.net_input, "decision_log": logs[-1]}}
            found.append(generator.generate([model], sample))
        check_same(*found)
        for item in dataclasses.fields(LayerWork):
            assert torch.equal(getattr(logs[0][1], item.name), getattr(logs[1][1], item.name)), item.name


def trace(model, net_input, beam, **options):
    """Generates one sentence; returns traced FLOPs and decoder steps."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hypotheses = generate([model], net_input, beam, max_len_b=9, **options)[0]
    return counter.get_total_flops(), torch.tensor([max(len(one["tokens"]) for one in hypotheses)])


@by_position
@pytest.mark.parametrize("kind", {"BART": {}, **T5_VARIANTS})
@pytest.mark.parametrize("beam", [1, 4])
def test_traced_flops_equal_the_closed_form_of_a_schedule(rule, kind, beam):
    model = build(rule, **{"BART": {}, **T5_VARIANTS}[kind])
    shape = dataclasses.replace(model.shape, policy_networks=0)
    for length, keep in ((19, 1.0), (7, 0.6), (2, 0.6)):
        batch, decisions = random_batch([length]), random_decisions(model.space, 1, keep)
        found, steps = trace(model, along(batch, decisions), beam, min_len=4)
        work = scheduled_work(model.decoder.rule, steps, beam)
        closed = path_flops("generation", shape, model.space, decisions, Lengths(batch.src_lengths, steps, beam, work))
        assert found == int(closed), (length, work)


@by_confidence
def test_traced_flops_equal_the_closed_form_of_what_left(rule):
    model = build(rule)
    for beam in beams_of(rule):
        for length in (19, 7, 2):
            batch, log = random_batch([length]), []
            found, steps = trace(model, {**batch.net_input, "decision_log": log}, beam, min_len=4)
            decisions, work = log
            assert work.given.tolist() == [int(steps) * beam]
            lengths = Lengths(batch.src_lengths, steps, beam, work)
            assert found == int(path_flops("generation", model.shape, model.space, decisions, lengths))


@torch.no_grad()
@by_confidence
def test_the_work_of_a_sentence_is_its_own(rule):
    """A sentence's logits and counts do not change with its batch mates, which leave the search before or after it."""
    model, batch, lengths = build(rule), random_batch(), [4, 1, 7, 3, 7, 2]
    beam = 1 if rule.startswith("free") else 2
    tokens = torch.randint(4, 100, (6 * beam, 7))
    found, work = decode_and_leave(model, batch, tokens, lengths)
    for row in range(6):
        own = tokens[row * beam : (row + 1) * beam]
        alone, counts = decode_and_leave(model, pick(batch, row), own, lengths[row : row + 1])
        for (present, logits), (_, expected) in zip(found, alone):
            torch.testing.assert_close(logits.view(len(present), beam, -1)[present.index(row)], expected, **CLOSE)
        for item in dataclasses.fields(LayerWork):
            assert torch.equal(getattr(work, item.name)[row : row + 1], getattr(counts, item.name)), item.name


@torch.no_grad()
@by_position
def test_a_layer_that_ended_is_not_run(rule, monkeypatch):
    """Feed-forward products of the fast search see every hypothesis at the steps of the schedule, and no other."""
    monkeypatch.setenv(library.SWITCH, "0")
    model, batch = build(rule), random_batch()
    rows, plain = {}, FeedForward.__call__

    def counted(self, x):
        rows[id(self)] = rows.get(id(self), 0) + x.size(0)
        return plain(self, x)

    monkeypatch.setattr(FeedForward, "__call__", counted)
    fast = FastModel(model)
    generator = SequenceGenerator(fast, model.decoder.dictionary, 2, min_len=7, max_len_b=7)
    generator.generate([model], {"net_input": batch.net_input})
    work = scheduled_work(model.decoder.rule, torch.full((6,), 8), 2)
    for index, layer in enumerate(fast.weights.decoder_layers):
        assert rows.get(id(layer.ffn), 0) == int(work.tokens[:, index].sum())


@every_rule
def test_a_rule_never_costs_more_than_all_layers_and_all_heads(rule):
    """And one that lets every layer run costs the dense FLOPs."""
    model = build(rule)
    lengths = Lengths(torch.tensor([20, 7]), torch.tensor([9, 3]), 2)
    keep = model.space.keep_all(2, torch.device("cpu"))
    work = scheduled_work(model.decoder.rule, lengths.target, 2)
    dense = {name: dense_flops(name, model.shape, model.space, lengths) for name in ("generation", "paper")}
    for name in dense:
        if work is not None:
            found = path_flops(name, model.shape, model.space, keep, dataclasses.replace(lengths, work=work))
            assert bool((found < dense[name]).any()) and bool((found <= dense[name]).all())
        full = scheduled_work(build("skipdecode:min=5").decoder.rule, lengths.target, 2)
        found = path_flops(name, model.shape, model.space, keep, dataclasses.replace(lengths, work=full))
        torch.testing.assert_close(found, dense[name])


@torch.no_grad()
def test_several_hypotheses_are_refused_where_one_is_kept():
    model, batch = build("free"), random_batch()
    with pytest.raises(InputError, match="found 4: give --beam 1"):
        generate([model], batch.net_input, 4)


@torch.no_grad()
def test_early_exits_on_top_of_skipped_sublayers_are_refused():
    model, batch = build("calm, gap"), random_batch()
    with pytest.raises(InputError, match="decisions that skip"):
        generate([model], along(batch, random_decisions(model.space, 6, 0.5)), 1)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"sd_rule": "hsd:min=9"}, "min is 9, expected 2..3"),
        ({"sd_rule": "calm", **T5_VARIANTS["T5 v1.1"]}, "is for BART, found switchable_t5"),
        ({"sd_rule": "hsd", "arch": "switchable_gpt2_tiny"}, "a model that is one stack"),
    ],
)
def test_a_model_that_cannot_follow_a_rule_is_one_line(options, reason):
    with pytest.raises(InputError, match=reason):
        build_model(sd_policy="dense", **options)
