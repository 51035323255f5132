"""An example's output depends on the example and its own decisions only."""

import pytest
import torch
from factories import (
    T5,
    T5_VARIANTS,
    along,
    build_model,
    generate,
    pad_rows,
    pick,
    random_batch,
    random_decisions,
    undecide,
)

from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.decision.noise import Noise
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
VARIANTS = {
    "together": {},
    "cross-attention apart": {"sd_cross_attention_apart": True},
    "skip keeps LayerNorm": {"sd_skip_keeps_layer_norm": True},
    "first attention always runs": {"sd_always_run_attention": 1},
    "tokens only": {"sd_space": "token"},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    **T5_VARIANTS,
}
POLICIES = {
    "network": {},
    "layerwise": {"sd_policy": "layerwise"},
    "random": {"sd_policy": "random"},
    "state and length": {"sd_policy": "layerwise", "sd_policy_input": "state+length"},
    "of a T5": T5,
    "layerwise, of a T5": {**T5, "sd_policy": "layerwise"},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_policy = pytest.mark.parametrize("policy", POLICIES)


def build(options):
    model = build_model(**options)
    if hasattr(model.encoder.policy, "stages"):
        undecide(model)
    return model


def teacher_force(model, batch, path):
    return model(batch.src_tokens, batch.src_lengths, batch.prev_output_tokens, path=path)


def rows_of(decisions, row):
    return decisions.index_select(torch.tensor([row]))


@torch.no_grad()
@every_variant
def test_batch_mates_and_padding_change_no_examples_output(variant):
    model, batch = build(VARIANTS[variant]), random_batch()
    decisions = random_decisions(model.space, 6)
    together = teacher_force(model, batch, PathRequest(decisions=decisions))[0]
    pad = model.encoder.padding_idx
    for row in range(6):
        path = PathRequest(decisions=rows_of(decisions, row))
        one = pick(batch, row)
        for side in ("left", "right"):
            padded = one._replace(src_tokens=pad_rows(one.sources, pad, side, extra=5 * row))
            alone = teacher_force(model, padded, path)[0]
            torch.testing.assert_close(alone, together[row : row + 1], **CLOSE)


@torch.no_grad()
@every_variant
def test_batch_mates_decisions_change_no_examples_output(variant):
    model, batch = build(VARIANTS[variant]), random_batch()
    mine = random_decisions(model.space, 1)
    outputs = []
    for _ in range(4):
        others = random_decisions(model.space, 5, keep_probability=float(torch.rand(())))
        names = Decisions.__dataclass_fields__
        decisions = Decisions(**{name: torch.cat([getattr(mine, name), getattr(others, name)]) for name in names})
        outputs.append(teacher_force(model, batch, PathRequest(decisions=decisions))[0][0])
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], **CLOSE)


@torch.no_grad()
@every_policy
@pytest.mark.parametrize("kind", ["mode", "sample", "sharpened"])
def test_batch_mates_and_padding_change_no_examples_decisions(policy, kind):
    model, batch = build(POLICIES[policy]), random_batch((20, 13, 7, 17, 3, 9, 11, 12))
    ids = torch.tensor([5, 90, 3, 41, 8, 77, 1000, 12])

    def run(one, chosen):
        noise = None if kind == "mode" else Noise.for_examples(chosen, 3, model.space)
        path = PathRequest(kind, bound=0.9, temperature=0.5, noise=noise)
        output, extra = teacher_force(model, one, path)
        return output, extra["decisions"]

    together, decisions = run(batch, ids)
    assert decisions.count_distinct_paths() >= 4
    for row in range(8):
        alone, own = run(pick(batch, row), ids[row : row + 1])
        assert own.same_path(rows_of(decisions, row)).all()
        torch.testing.assert_close(alone, together[row : row + 1], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("policy", ["network", "layerwise"])
def test_decisions_are_those_of_the_distribution_at_the_returned_states(policy):
    model, batch = build(POLICIES[policy]), random_batch((20, 13, 7, 17, 3, 9, 11, 12))
    extra = teacher_force(model, batch, PathRequest())[1]
    assert model.encoder.policy(extra["policy_states"]).mode().same_path(extra["decisions"]).all()
    noise = Noise.for_examples(torch.arange(8), 3, model.space)
    extra = teacher_force(model, batch, PathRequest("sample", bound=0.9, noise=noise))[1]
    again = model.encoder.policy(extra["policy_states"]).bounded(0.9).sample(noise)
    assert again.same_path(extra["decisions"]).all()


@torch.no_grad()
@pytest.mark.parametrize("policy", ["network", "layerwise"])
def test_a_given_path_still_returns_the_states_that_it_led_to(policy):
    model, batch = build(POLICIES[policy]), random_batch()
    extra = teacher_force(model, batch, PathRequest())[1]
    given = teacher_force(model, batch, PathRequest(decisions=extra["decisions"]))[1]
    torch.testing.assert_close(given["policy_states"], extra["policy_states"])


def test_no_gradient_of_the_backbone_passes_through_the_policys_input():
    model, batch = build({}), random_batch()
    extra = teacher_force(model.train(), batch, PathRequest())[1]
    assert all(not state.requires_grad and state.dtype == torch.float32 for state in extra["policy_states"])


@torch.no_grad()
def test_a_random_policy_is_deterministic_in_teacher_forcing_and_generation():
    model, batch = build(POLICIES["random"]), random_batch()
    decisions = teacher_force(model, batch, PathRequest())[1]["decisions"]
    torch.manual_seed(99)
    for kind in ("mode", "sample", "sharpened"):
        assert teacher_force(model, batch, PathRequest(kind))[1]["decisions"].same_path(decisions).all()
    log = []
    first = generate([model], {**batch.net_input, "decision_log": log}, 2)
    assert len(log) == 1 and log[0].same_path(decisions).all()
    again = generate([model], batch.net_input, 2)
    assert all(torch.equal(mine[0]["tokens"], theirs[0]["tokens"]) for mine, theirs in zip(first, again))


@torch.no_grad()
@every_variant
def test_decisions_follow_a_reordered_encoder_output(variant):
    model, batch = build(VARIANTS[variant]), random_batch()
    decisions = random_decisions(model.space, 6)
    encoded = model.encoder(**along(batch, decisions))
    expected, extra = model.decoder(batch.prev_output_tokens, encoder_out=encoded)
    order = torch.tensor([4, 4, 0, 5, 1])
    reordered = model.encoder.reorder_encoder_out(encoded, order)
    assert reordered["decisions"][0].same_path(decisions.index_select(order)).all()
    output, more = model.decoder(batch.prev_output_tokens[order], encoder_out=reordered)
    torch.testing.assert_close(output, expected[order], **CLOSE)
    torch.testing.assert_close(more["attn"][0], extra["attn"][0][order], **CLOSE)


@torch.no_grad()
def test_reordering_leaves_the_original_output_alone():
    model, batch = build({}), random_batch()
    encoded = model.encoder(**along(batch, random_decisions(model.space, 6)))
    before = {key: list(value) for key, value in encoded.items()}
    model.encoder.reorder_encoder_out(encoded, torch.tensor([1, 0, 0]))
    assert encoded.keys() == before.keys()
    for key, values in before.items():
        assert all(mine is theirs for mine, theirs in zip(encoded[key], values)), key


@torch.no_grad()
def test_hidden_states_are_returned_on_request():
    model, batch = build({}), random_batch()
    encoded = model.encoder(**along(batch, random_decisions(model.space, 6)), return_all_hiddens=True)
    assert len(encoded["encoder_states"]) == 4
    assert encoded["encoder_states"][-1] is encoded["encoder_out"][0]


def test_an_unknown_path_is_an_error_naming_it():
    model, batch = build({}), random_batch()
    with pytest.raises(ValueError, match="'fastest' is not one of mode, sample, sharpened, dense"):
        teacher_force(model, batch, PathRequest("fastest"))
