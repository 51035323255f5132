"""Decoder-only models under the laws of all families: the source is the prompt, the target the answer."""

import dataclasses
from pathlib import Path

import pytest
import torch
from factories import (
    PROMPT_VARIANTS,
    along,
    build_model,
    generate,
    pad_rows,
    pick,
    random_batch,
    random_decisions,
    undecide,
)
from laws import check_traced_flops
from training import build_samples, build_training

from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.plugin.convert.import_model import build, read_source
from sd_fairseq.plugin.convert.weights.safetensors import read_safetensors
from sd_fairseq.plugin.criterions.policy_step import Evaluator
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.fixed_path import parse_path, path_decisions

REFERENCE = Path(__file__).resolve().parents[1] / "reference"  # by make_llama.py and make_gpt2.py there
REFERENCES = ["llama/grouped", "llama/tied", "gpt2/plain", "gpt2/untied"]
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
every_variant = pytest.mark.parametrize("variant", PROMPT_VARIANTS)
every_reference = pytest.mark.parametrize("kind", REFERENCES)


def teacher_force(model, batch, decisions):
    return model(batch.src_tokens, None, batch.prev_output_tokens, path=PathRequest(decisions=decisions))


def rows_of(decisions, row):
    return decisions.index_select(torch.tensor([row]))


@torch.no_grad()
@every_reference
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_hugging_faces_with_padding_on_either_side(kind, side):
    source = read_source(str(REFERENCE / kind))
    model, wanted = build(source), read_safetensors(str(REFERENCE / kind / "expected.safetensors"))
    eos, pad = source.dictionary.eos(), source.dictionary.pad()
    prompts = [row[:length] for row, length in zip(wanted["prompts"], wanted["prompt_lengths"].tolist())]
    sources = pad_rows([torch.cat([one, torch.tensor([eos])]) for one in prompts], pad, side, extra=2)
    previous = torch.cat([torch.full_like(wanted["answers"][:, :1], eos), wanted["answers"][:, :-1]], dim=1)
    logits = model(sources, None, previous)[0]
    for row, steps in enumerate(wanted["answer_lengths"].tolist()):
        expected = wanted["logits"][row, :steps]
        assert float(expected.std()) > 0.2
        torch.testing.assert_close(logits[row, :steps, : expected.size(1)], expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind,unknown", [("llama/tied", {"<unk>": 0}), ("gpt2/plain", {})])
def test_an_added_padding_symbol_is_never_the_most_probable(kind, unknown):
    source = read_source(str(REFERENCE / kind))
    assert source.parts == {"</s>": 2, "<pad>": 48, **unknown} and len(source.dictionary) == 49
    logits = build(source)(torch.tensor([[5, 6, 7, 2]]), None, torch.tensor([[2, 9]]))[0]
    assert logits.shape == (1, 2, 49)
    assert torch.equal(logits[..., 48], logits[..., :48].min(dim=-1).values)


@torch.no_grad()
@every_variant
def test_batch_mates_and_padding_change_no_examples_output(variant):
    model, batch = build_model(**PROMPT_VARIANTS[variant]), random_batch()
    decisions = random_decisions(model.space, 6)
    together = teacher_force(model, batch, decisions)[0]
    for row in range(6):
        one = pick(batch, row)
        for side in ("left", "right"):
            padded = one._replace(src_tokens=pad_rows(one.sources, model.encoder.padding_idx, side, extra=5 * row))
            alone = teacher_force(model, padded, rows_of(decisions, row))[0]
            torch.testing.assert_close(alone, together[row : row + 1], **CLOSE)


@torch.no_grad()
@every_variant
@pytest.mark.parametrize("policy", ["network", "layerwise"])
def test_batch_mates_change_no_examples_decisions(variant, policy):
    model = build_model(**PROMPT_VARIANTS[variant], sd_policy=policy)
    batch = random_batch((20, 13, 7, 17, 4, 9, 11, 12))
    undecide(model)
    for name, parameter in model.encoder.policy.named_parameters():
        if name.endswith("hidden.weight"):
            parameter.mul_(5)  # what prompts have in common, positions and biases, must not decide alone
    together, extra = model(batch.src_tokens, None, batch.prev_output_tokens)
    assert extra["decisions"].count_distinct_paths() >= 3
    for row in range(8):
        one = pick(batch, row)
        alone, own = model(one.src_tokens, None, one.prev_output_tokens)
        assert own["decisions"].same_path(rows_of(extra["decisions"], row)).all()
        torch.testing.assert_close(alone, together[row : row + 1], **CLOSE)


@torch.no_grad()
@every_variant
@pytest.mark.parametrize("keep_probability", [0.2, 0.6])
def test_cached_decoding_equals_uncached_decoding(variant, keep_probability):
    model, batch = build_model(**PROMPT_VARIANTS[variant]), random_batch()
    decisions = random_decisions(model.space, 6, keep_probability)
    expected = teacher_force(model, batch, decisions)[0]
    encoded, state = model.encoder(**along(batch, decisions)), {}
    for step in range(batch.prev_output_tokens.size(1)):
        tokens = batch.prev_output_tokens[:, : step + 1]
        logits = model.decoder(tokens, encoder_out=encoded, incremental_state=state)[0]
        torch.testing.assert_close(logits[:, -1], expected[:, step], **CLOSE)


@torch.no_grad()
@every_variant
def test_caches_follow_a_search_that_reorders_and_removes(variant):
    """Random reorderings; at the end every row must stand where decoding its own history anew would put it."""
    model, batch = build_model(**PROMPT_VARIANTS[variant]), random_batch(target_length=6)
    decisions, beam = random_decisions(model.space, 6, 0.5), 2
    encoded = model.encoder(**along(batch, decisions))
    rows = torch.arange(6).repeat_interleave(beam)  # the sentence of every row
    tokens, state = torch.full((6 * beam, 1), model.decoder.eos), {}
    for stay in ([0, 1, 2, 3, 4, 5], [0, 2, 3, 4, 5], [0, 2, 3, 4, 5], [2, 5], [5]):
        logits = model.decoder(tokens, encoder_out=encoded, incremental_state=state)[0]
        history = model.encoder.reorder_encoder_out(encoded, rows)
        expected = model.decoder(tokens, encoder_out=history)[0]
        torch.testing.assert_close(logits[:, -1], expected[:, -1], **CLOSE)
        present = rows.view(-1, beam)[:, 0].tolist()
        order = torch.cat([present.index(s) * beam + torch.randint(beam, (beam,)) for s in stay])
        model.decoder.reorder_incremental_state_scripting(state, order)
        tokens = torch.cat([tokens[order], torch.randint(4, 100, (len(order), 1))], dim=1)
        rows = rows[order]


@torch.no_grad()
@every_variant
@pytest.mark.parametrize("beam", [1, 4])
def test_searching_a_batch_equals_searching_one_by_one_and_scores_what_teacher_forcing_gives(variant, beam):
    model, batch = build_model(**PROMPT_VARIANTS[variant]), random_batch()
    decisions = random_decisions(model.space, 6)
    together = generate([model], along(batch, decisions), beam)
    for row in range(6):
        own, one = rows_of(decisions, row), pick(batch, row)
        alone = generate([model], along(one, own), beam)[0]
        for mine, theirs in zip(alone, together[row]):
            assert torch.equal(mine["tokens"], theirs["tokens"])
            tokens = mine["tokens"].unsqueeze(0)
            previous = torch.cat([torch.tensor([[model.decoder.eos]]), tokens[:, :-1]], dim=1)
            log_probs = teacher_force(model, one._replace(prev_output_tokens=previous), own)[0].log_softmax(dim=-1)
            expected = log_probs.gather(2, tokens.unsqueeze(2)).view(-1)
            torch.testing.assert_close(mine["positional_scores"], expected, atol=1e-4, rtol=0)


@every_variant
@pytest.mark.parametrize("beam", [1, 4])
def test_traced_flops_of_generation_equal_the_closed_form_on_random_paths(variant, beam):
    model = build_model(**PROMPT_VARIANTS[variant])
    for length in (19, 7, 4):
        check_traced_flops(model, random_decisions(model.space, 1, 0.5), length, beam)


def test_a_spared_end_is_kept_and_costs_what_the_closed_form_says():
    model = build_model(**PROMPT_VARIANTS["GPT-2"], sd_protect_end=5)
    decisions = random_decisions(model.space, 1, 0.5)
    decisions.token_choice[0] = 6  # uniform:50
    check_traced_flops(model, decisions, length=14, beam=1)
    with torch.no_grad():
        positions = model.encoder(**along(random_batch([14]), decisions))["kept_positions"][0]
    assert positions.tolist() == [[0, 2, 4, *range(6, 12)]] or positions.tolist()[0][-6:] == list(range(6, 12))


def test_a_switch_counts_for_prompt_and_answer():
    model = build_model(**PROMPT_VARIANTS["LLaMA"])
    decisions = random_decisions(model.space, 9, 0.5)
    assert torch.equal(decisions.encoder_attention, decisions.decoder_attention)
    assert torch.equal(decisions.encoder_ffn, decisions.decoder_ffn)
    assert {site for site, _ in model.space.switches} == {"encoder_attention", "encoder_ffn"}
    path = parse_path("encoder_attention==10,encoder_ffn==01,token_strategy=keep", model.space)
    assert path["decoder_attention"] == "=10" and path["decoder_ffn"] == "=01"
    assert path_decisions(path, model.space, 2).decoder_ffn.tolist() == [[True, False, True]] * 2
    with pytest.raises(InputError, match="prompt and answer differ"):
        parse_path("encoder_ffn==01,decoder_ffn==11", model.space)


@torch.no_grad()
def test_layer_1_shows_the_answer_the_whole_prompt_and_the_others_what_is_left():
    model, batch = build_model(**PROMPT_VARIANTS["LLaMA"]), random_batch([22, 14])
    decisions = dataclasses.replace(
        model.space.keep_all(2, torch.device("cpu")),
        token_choice=torch.tensor([len(model.space.token_strategies) - 1] * 2),
    )
    memories = model.encoder(**along(batch, decisions))["prompt"]
    assert [memory.keys.size(2) for memory in memories] == [20, 10, 10]


def test_layers_are_held_once():
    model = build_model(**PROMPT_VARIANTS["LLaMA"])
    assert not [name for name in model.state_dict() if name.startswith("encoder.") and "policy" not in name]
    other = build_model(**PROMPT_VARIANTS["LLaMA"])
    other.load_state_dict({name: value for name, value in model.state_dict().items() if "policy" not in name})
    assert other.encoder.layers[1] is other.decoder.layers[1]


@pytest.mark.parametrize("estimator", ["score-function", "reinmax"])
@every_variant
def test_training_with_the_policy_criterion_lowers_the_loss_and_moves_the_policy(variant, estimator):
    options = {"sd_preset": "paper", "sd_estimator": estimator, "sd_mode": "budget", "sd_flops_budget": 0.7}
    training, (sample,) = build_training(PROMPT_VARIANTS[variant], **options), build_samples()
    training.optimizer.inner.param_groups[0]["lr"] = 0.01
    evaluator = Evaluator(training.model, sample, 1, 0.0)
    before, policy = evaluator.score(PathRequest())[0].nll, training.policy()
    for update in range(12):
        training.update([sample], update)
    assert float(evaluator.score(PathRequest())[0].nll) < 0.9 * float(before)
    assert not torch.equal(training.policy(), policy)


def test_a_gated_path_has_the_values_and_the_gradient_of_the_skipping_path():
    training, (sample,) = build_training(PROMPT_VARIANTS["LLaMA"]), build_samples()
    decisions, found = random_decisions(training.model.space, 8), []
    for gated in (False, True):
        training.model.zero_grad()
        quality, _ = Evaluator(training.model, sample, 1, 0.1).run(PathRequest(decisions=decisions, gated=gated))
        quality.loss.backward()
        gradients = {name: p.grad.clone() for name, p in training.model.named_parameters() if p.grad is not None}
        found.append((quality.per_example.detach(), gradients))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options,text",
    [
        ({"sd_skip_keeps_layer_norm": True}, "--sd-skip-keeps-layer-norm is for BART"),
        ({"sd_cross_attention_apart": True}, "has no cross-attention"),
        ({"sd_always_run_attention": 2}, "prompt and answer share their switches"),
        ({"key_heads": 3}, "--key-heads 3 is no divisor of 4 heads"),
    ],
    ids=str,
)
def test_options_that_the_model_does_not_go_with_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        build_model(**{**PROMPT_VARIANTS["LLaMA"], **options})
