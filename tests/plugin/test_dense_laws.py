"""Keeping everything is plain BART, bit for bit."""

import pytest
import torch
from factories import build_model, build_switchable_twin, generate, pad_rows, random_batch

from sd_fairseq.plugin.models.switchable_encoder import PathRequest
from sd_fairseq.plugin.models.switchable_layers import FUSED_KERNEL_COPIES

VARIANTS = {
    "network": {},
    "layerwise": {"sd_policy": "layerwise"},
    "dense": {"sd_policy": "dense"},
    "random that keeps everything": {"sd_policy": "random", "sd_random_keep": 1.0},
    "cross-attention apart": {"sd_cross_attention_apart": True},
    "skip keeps LayerNorm": {"sd_skip_keeps_layer_norm": True},
    "first layers": {"sd_first_encoder_layer": 3, "sd_first_decoder_layer": 2},
}
BACKBONES = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "final LayerNorm, scaled embedding": {"no_scale_embedding": False, "layernorm_embedding": False},
}


def build_pair(variant="network", backbone="post-norm", **both):
    bart = build_model("bart_base", **BACKBONES[backbone], **both)
    return bart, build_switchable_twin(bart, **BACKBONES[backbone], **VARIANTS[variant], **both)


def teacher_force(model, batch, **options):
    return model(batch.src_tokens, batch.src_lengths, batch.prev_output_tokens, **options)


def assert_same_hypotheses(left, right):
    for ours, theirs in zip(left, right):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert torch.equal(one["tokens"], other["tokens"])
            assert torch.equal(one["score"], other["score"])
            assert torch.equal(one["positional_scores"], other["positional_scores"])
            torch.testing.assert_close(one["attention"], other["attention"], atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_teacher_forcing_is_barts_for_every_kind_of_policy(variant):
    bart, model = build_pair(variant)
    batch = random_batch()
    expected, extra = teacher_force(bart, batch)
    found, more = teacher_force(model, batch)
    assert torch.equal(found, expected)
    torch.testing.assert_close(more["attn"][0], extra["attn"][0])
    assert len(more["inner_states"]) == len(extra["inner_states"])


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_teacher_forcing_is_barts_with_padding_on_either_side_of_source_and_target(backbone, side):
    bart, model = build_pair(backbone=backbone)
    batch = random_batch()
    pad = bart.encoder.padding_idx
    targets = [row[: 3 + index] for index, row in enumerate(batch.prev_output_tokens)]
    batch = batch._replace(
        src_tokens=pad_rows(batch.sources, pad, side, extra=2), prev_output_tokens=pad_rows(targets, pad, "right")
    )
    assert torch.equal(teacher_force(model, batch)[0], teacher_force(bart, batch)[0])


def test_training_on_the_dense_path_has_barts_loss_gradients_and_dropout():
    bart, model = build_pair(dropout=0.2, attention_dropout=0.1, activation_dropout=0.1)
    batch = random_batch()
    gradients = []
    for one in (bart.train(), model.train()):
        torch.manual_seed(5)
        teacher_force(one, batch)[0].square().mean().backward()
        named = [(name, p) for name, p in one.named_parameters() if not name.endswith(FUSED_KERNEL_COPIES)]
        gradients.append({name: p.grad for name, p in named if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


@pytest.mark.parametrize("path", ["dense", "mode"])
def test_checkpointed_activations_change_nothing(path):
    bart, model = build_pair()
    saving = build_switchable_twin(bart, checkpoint_activations=True)
    batch = random_batch()
    gradients = []
    for one in (model.train(), saving.train()):
        teacher_force(one, batch, path=PathRequest(path))[0].square().mean().backward()
        gradients.append([p.grad for p in one.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_the_encoder_gives_barts_dictionary():
    bart, batch = build_model("bart_base"), random_batch()
    expected = bart.encoder(batch.src_tokens, batch.src_lengths)
    found = build_switchable_twin(bart).encoder(batch.src_tokens, batch.src_lengths, path=PathRequest("dense"))
    for name in ("encoder_out", "encoder_padding_mask", "encoder_embedding", "src_lengths"):
        assert torch.equal(found[name][0], expected[name][0]), name


@torch.no_grad()
def test_features_and_classification_heads_are_barts():
    bart, model = build_pair()
    bart.register_classification_head("sentences", num_classes=3)
    model.register_classification_head("sentences", num_classes=3)
    model.classification_heads.load_state_dict(bart.classification_heads.state_dict())
    batch = random_batch()
    tokens = pad_rows(batch.sources, bart.encoder.padding_idx, "right")
    batch = batch._replace(src_tokens=tokens, prev_output_tokens=tokens)  # as sentence prediction feeds BART
    for options in ({"features_only": True}, {"classification_head_name": "sentences"}):
        expected = teacher_force(bart.eval(), batch, **options)[0]
        assert torch.equal(teacher_force(model.eval(), batch, **options)[0], expected)
    assert expected.shape == (6, 3)


@torch.no_grad()
@pytest.mark.parametrize(
    "beam,options",
    [
        (1, {}),
        (4, {}),
        (4, {"len_penalty": 2.0, "min_len": 6}),
        (3, {"len_penalty": 0.0, "unk_penalty": 1.0, "temperature": 0.7}),
        (2, {"normalize_scores": False, "max_len_a": 0.5, "max_len_b": 2}),
    ],
    ids=str,
)
def test_generation_is_barts_in_tokens_and_scores(beam, options):
    bart, model = build_pair()
    batch = random_batch()
    assert_same_hypotheses(
        generate([model], batch.net_input, beam, **options), generate([bart], batch.net_input, beam, **options)
    )


@torch.no_grad()
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "network"])
def test_generation_is_barts_for_every_kind_of_policy(variant):
    bart, model = build_pair(variant)
    batch = random_batch((9, 14, 5))
    assert_same_hypotheses(generate([model], batch.net_input, 3), generate([bart], batch.net_input, 3))


@torch.no_grad()
def test_generation_with_prefixes_is_barts():
    bart, model = build_pair()
    batch = random_batch()
    prefixes = batch.prev_output_tokens[:, 1:4].clone()
    prefixes[2:4, 2] = bart.encoder.padding_idx
    assert_same_hypotheses(
        generate([model], batch.net_input, 3, prefixes), generate([bart], batch.net_input, 3, prefixes)
    )


@torch.no_grad()
def test_generation_of_an_ensemble_is_barts():
    pairs = [build_pair(), build_pair()]
    batch = random_batch((9, 14, 5))
    assert_same_hypotheses(
        generate([model for _, model in pairs], batch.net_input, 3),
        generate([bart for bart, _ in pairs], batch.net_input, 3),
    )
