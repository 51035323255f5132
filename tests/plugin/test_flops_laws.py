"""What is skipped is not run: traced FLOPs and calls of the real model equal the closed form on any path."""

import dataclasses

import pytest
import torch
from factories import T5_VARIANTS, along, build_model, generate, random_batch, random_decisions, undecide
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sd_fairseq.cost.path_flops import Lengths, dense_flops, path_flops
from sd_fairseq.decision.decisions import SITES

VARIANTS = {
    "together": {},
    "cross-attention apart": {"sd_cross_attention_apart": True},
    "first layers": {"sd_first_encoder_layer": 3, "sd_first_decoder_layer": 2, "sd_always_run_attention": 2},
    "tokens only": {"sd_space": "token"},
    "uneven stacks": {"decoder_layers": 2, "decoder_ffn_embed_dim": 48},
    **T5_VARIANTS,
}


def traced_generation(model, net_input, beam):
    """Generates one sentence; returns traced FLOPs and decoder steps."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hypotheses = generate([model], net_input, beam, max_len_b=6)[0]
    return counter.get_total_flops(), max(len(one["tokens"]) for one in hypotheses)


def lengths_of(batch, steps, beam):
    return Lengths(batch.src_lengths, torch.tensor([steps]), beam)


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_traced_flops_of_generation_equal_the_closed_form_on_random_paths(variant, beam):
    model = build_model(**VARIANTS[variant])
    shape = dataclasses.replace(model.shape, policy_networks=0)  # the path is given, no policy runs
    for length in (19, 7, 2):
        batch = random_batch([length])
        decisions = random_decisions(model.space, 1, keep_probability=0.5)
        found, steps = traced_generation(model, along(batch, decisions), beam)
        closed = path_flops("generation", shape, model.space, decisions, lengths_of(batch, steps, beam))
        assert found == int(closed), (length, model.space.describe(decisions, 0))


@pytest.mark.parametrize("index", range(7))
def test_traced_flops_equal_the_closed_form_for_every_token_strategy(index):
    model = build_model(sd_space="token")
    shape = dataclasses.replace(model.shape, policy_networks=0)
    batch = random_batch([31])
    decisions = dataclasses.replace(model.space.keep_all(1, torch.device("cpu")), token_choice=torch.tensor([index]))
    found, steps = traced_generation(model, along(batch, decisions), 2)
    assert found == int(path_flops("generation", shape, model.space, decisions, lengths_of(batch, steps, 2)))


@pytest.mark.parametrize("inputs", ["state", "length", "state+length", "nothing"])
@pytest.mark.parametrize("policy", ["network", "layerwise", "random", "dense"])
def test_traced_flops_with_the_policy_at_work_equal_the_closed_form(policy, inputs):
    model = build_model(sd_policy=policy, sd_policy_hidden_size=20, sd_random_keep=0.5, sd_policy_input=inputs)
    if policy in ("network", "layerwise"):
        undecide(model)
    for length in (19, 8):
        batch, log = random_batch([length]), []
        found, steps = traced_generation(model, {**batch.net_input, "decision_log": log}, 3)
        lengths = lengths_of(batch, steps, 3)
        assert found == int(path_flops("generation", model.shape, model.space, log[0], lengths))


def test_traced_flops_of_a_policy_for_a_range_of_budgets_equal_the_closed_form():
    model = build_model(sd_policy_hidden_size=20, sd_budget_range="0.4,0.9")
    undecide(model)
    for budget in (0.4, 0.55, 0.9):
        batch, log = random_batch([19]), []
        with model.encoder.policy.serving(budget):
            found, steps = traced_generation(model, {**batch.net_input, "decision_log": log}, 2)
        closed = path_flops("generation", model.shape, model.space, log[0], lengths_of(batch, steps, 2))
        assert found == int(closed)


def test_traced_flops_of_plain_bart_equal_the_dense_path():
    bart, model = build_model("bart_base"), build_model()
    batch = random_batch([17])
    found, steps = traced_generation(bart, batch.net_input, 1)
    assert found == int(dense_flops("generation", model.shape, model.space, lengths_of(batch, steps, 1)))


def test_sentences_of_one_length_cost_a_batch_the_sum_of_their_paths():
    model = build_model(sd_space="encoder,decoder")
    shape = dataclasses.replace(model.shape, policy_networks=0)
    batch = random_batch([15] * 5)
    decisions = random_decisions(model.space, 5, keep_probability=0.5)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hypotheses = generate([model], along(batch, decisions), 2, max_len_b=6)
    steps = torch.tensor([max(len(one["tokens"]) for one in group) for group in hypotheses])
    closed = path_flops("generation", shape, model.space, decisions, Lengths(batch.src_lengths, steps, 2))
    assert counter.get_total_flops() == int(closed.sum())


def modules_of(model, site, layer):
    """The matrix products' modules of a sub-layer: attention, or both feed-forward projections."""
    one = (model.encoder if site.startswith("encoder") else model.decoder).layers[layer]
    if site.endswith("ffn"):
        one = getattr(one, "ffn", one)
        return [one.fc1, one.fc2]
    return [one.encoder_attn if site.endswith("cross_attention") else one.self_attn]


@torch.no_grad()
@pytest.mark.parametrize("keep_probability", [0.0, 0.5])
def test_a_sublayer_is_called_with_its_kept_rows_and_not_at_all_without_any(keep_probability):
    model, batch = build_model(sd_cross_attention_apart=True), random_batch()
    decisions = random_decisions(model.space, 6, keep_probability)
    seen = {}
    for site in SITES:
        for layer in range(model.space.layers_of(site)):
            for module in modules_of(model, site, layer):
                module.register_forward_hook(
                    lambda _, args, kwargs, output, key=(site, layer): seen.setdefault(key, []).append(
                        (args[0] if args else kwargs["query"]).size(1)
                    ),
                    with_kwargs=True,
                )
    model.decoder(batch.prev_output_tokens, encoder_out=model.encoder(**along(batch, decisions)))
    for site in SITES:
        for layer in range(model.space.layers_of(site)):
            kept = int(getattr(decisions, site)[:, layer].sum())
            calls = 2 if site.endswith("ffn") else 1
            assert seen.get((site, layer), []) == [kept] * calls * (kept > 0)


@torch.no_grad()
def test_both_encoder_switches_off_are_that_layer_pruned():
    model, batch = build_model(), random_batch()
    decisions = model.space.keep_all(6, torch.device("cpu"))
    decisions.encoder_attention[:, 1] = False
    decisions.encoder_ffn[:, 1] = False
    skipped = model.encoder(**along(batch, decisions))["encoder_out"][0]
    del model.encoder.layers[1]
    model.encoder.policy = None
    assert torch.equal(model.encoder(**batch.net_input)["encoder_out"][0], skipped)


@torch.no_grad()
def test_a_skipped_sublayer_that_keeps_its_layer_norm_applies_just_that():
    model, batch = build_model(sd_skip_keeps_layer_norm=True), random_batch()
    decisions = model.space.keep_all(6, torch.device("cpu"))
    decisions.encoder_attention[:, 2] = False
    decisions.encoder_ffn[:, 2] = False
    encoded = model.encoder(**along(batch, decisions), return_all_hiddens=True)
    before, last = encoded["encoder_states"][-2], model.encoder.layers[2]
    expected = last.final_layer_norm(last.self_attn_layer_norm(before))
    torch.testing.assert_close(encoded["encoder_out"][0], expected)
