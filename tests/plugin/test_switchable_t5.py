"""What is T5's own: sizes, what the policy reads, where a target begins, what is refused, that a training learns."""

import argparse
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from factories import T5, T5_VARIANTS, along, build_dictionary, build_model, random_batch, random_decisions
from fairseq.sequence_generator import SequenceGenerator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training import build_samples, build_training

from sd_fairseq.cost.path_flops import Lengths, path_flops
from sd_fairseq.decision.decider import PathRequest, masked_mean
from sd_fairseq.families.norms import divide_by_rms
from sd_fairseq.families.t5 import SIZES, T5Shape
from sd_fairseq.plugin.criterions.policy_step import Evaluator
from sd_fairseq.plugin.generation.fast_model import FastModel
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.switchable_t5 import SwitchableT5Decoder, SwitchableT5Encoder, SwitchableT5Model

every_variant = pytest.mark.parametrize("variant", T5_VARIANTS)
PUBLISHED = {"small": 76_961_152, "base": 247_577_856, "large": 783_150_080}
PUBLISHED.update({"1_0_small": 60_506_624, "1_0_base": 222_903_552})


@pytest.mark.parametrize("size", PUBLISHED)
def test_an_architecture_has_as_many_weights_as_the_published_model(size):
    shape: T5Shape = SIZES[size]
    with torch.device("meta"):
        embedding = nn.Embedding(32128, shape.dim)
        dictionary = build_dictionary()
        encoder = SwitchableT5Encoder(shape, dictionary, embedding, None, None, 512)
        decoder = SwitchableT5Decoder(shape, dictionary, embedding, 0, 512)
    assert sum(p.numel() for p in nn.ModuleList([encoder, decoder]).parameters()) == PUBLISHED[size]


def test_every_architecture_is_registered_with_its_sizes():
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    for size, shape in SIZES.items():
        name = "switchable_t5" if size == "small" else f"switchable_t5_{size}"
        args = argparse.Namespace()
        ARCH_CONFIG_REGISTRY[name](args)
        assert ARCH_MODEL_REGISTRY[name] is SwitchableT5Model
        found = args.encoder_embed_dim, args.encoder_attention_heads, args.attention_head_dim, args.encoder_layers
        assert found == (shape.dim, shape.heads, shape.head_dim, shape.encoder_layers)
        assert (args.feed_forward, args.share_decoder_input_output_embed) == (shape.feed_forward, shape.tied_head)


@torch.no_grad()
@every_variant
def test_the_policy_reads_states_divided_by_their_root_mean_square(variant):
    model, batch = build_model(**T5_VARIANTS[variant]), random_batch()
    encoded = model.encoder(**batch.net_input, return_all_hiddens=True)
    padding = batch.src_tokens.eq(model.encoder.padding_idx)
    expected = masked_mean(divide_by_rms(encoded["encoder_states"][1], 1e-6), padding)
    torch.testing.assert_close(encoded["policy_states"][0], expected)
    assert float(expected.abs().max()) < model.encoder.embed_tokens.embedding_dim**0.5


@torch.no_grad()
def test_a_dropped_token_changes_no_distance():
    """The middle token is dropped: those around it stay two apart, which one layer of attention alone shows."""
    model = build_model(**T5, sd_token_strategies="keep,uniform:50", encoder_layers=2)
    batch = random_batch([9])
    decisions = model.space.keep_all(1, torch.device("cpu"))
    decisions.token_choice[0] = 1
    encoded = model.encoder(**along(batch, decisions), return_all_hiddens=True)
    (positions,) = encoded["kept_positions"]
    assert positions.size(1) < 9
    first, layer = encoded["encoder_states"][1], model.encoder.layers[1]
    kept = first[positions[0]]
    bias = model.encoder.relative_bias(torch.arange(9)[None], torch.arange(9)[None])
    bias = bias[:, :, positions[0]][:, :, :, positions[0]]
    torch.testing.assert_close(encoded["encoder_out"][0], model.encoder.layer_norm(layer(kept, bias)))


@torch.no_grad()
def test_a_target_begins_with_the_padding_row_and_an_end_inside_it_stays_an_end():
    model, batch = build_model(**T5), random_batch([7])
    encoded = model.encoder(**batch.net_input)
    pad, eos = model.decoder.padding_idx, model.decoder.eos
    tokens = torch.tensor([[eos, 9, eos, 11]])
    x, padding = model.decoder.embed_target(tokens, None, encoded)
    assert padding is None
    expected = model.decoder.embed_tokens(torch.tensor([[pad, 9, eos, 11]])).transpose(0, 1)
    assert torch.equal(x, expected)
    shifted = torch.tensor([[pad, pad, eos, 9, eos, 11]])  # --left-pad-target
    plain = model.decoder(tokens, encoder_out=encoded)[0]
    torch.testing.assert_close(model.decoder(shifted, encoder_out=encoded)[0][:, 2:], plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["score-function", "reinmax"])
@every_variant
def test_training_with_the_policy_criterion_lowers_the_loss_and_moves_the_policy(variant, estimator):
    options = {"sd_preset": "paper", "sd_estimator": estimator, "sd_mode": "budget", "sd_flops_budget": 0.7}
    training, (sample,) = build_training(T5_VARIANTS[variant], **options), build_samples()
    evaluator = Evaluator(training.model, sample, 1, 0.0)
    before, policy = evaluator.score(PathRequest())[0].nll, training.policy()
    for update in range(12):
        training.update([sample], update)
    assert float(evaluator.score(PathRequest())[0].nll) < 0.8 * float(before)
    assert not torch.equal(training.policy(), policy)


def test_every_weight_gets_a_gradient_and_dropout_is_at_work():
    training, (sample,) = build_training({**T5, "dropout": 0.3, "sd_policy": "dense"}, False), build_samples()
    model = training.model.train()
    losses = [Evaluator(model, sample, 1, 0.1).run(PathRequest("dense"))[0].loss for _ in range(2)]
    assert not torch.equal(losses[0], losses[1])
    losses[0].backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_a_fresh_model_begins_near_the_uniform_loss():
    from sd_fairseq.plugin.models.switchable_t5 import initialise

    training, (sample,) = build_training({**T5, "encoder_embed_dim": 64}), build_samples()
    training.model.apply(initialise)
    quality = Evaluator(training.model, sample, 1, 0.0).run(PathRequest("dense"))[0]
    uniform = torch.log(torch.tensor(float(len(training.model.decoder.dictionary))))
    assert float(quality.per_example.mean()) == pytest.approx(float(uniform), abs=1.0)


@pytest.mark.parametrize(
    "options,text",
    [
        ({"fp16": True}, "does not support --fp16: float16 ends at 65,504"),
        ({"memory_efficient_fp16": True}, "does not support --fp16"),
        ({"sd_skip_keeps_layer_norm": True}, "--sd-skip-keeps-layer-norm is for BART"),
        ({"feed_forward": "relu6"}, "--feed-forward 'relu6': expected one of relu, gated-gelu"),
        ({"ddp_backend": "fully_sharded"}, "--ddp-backend fully_sharded"),
    ],
    ids=str,
)
def test_options_that_t5_does_not_go_with_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        build_model(**T5, **options)


def test_a_classification_head_is_refused():
    with pytest.raises(InputError, match="switchable_t5 has no head 'sentences': it answers in text"):
        build_model(**T5).register_classification_head("sentences", num_classes=2)


def test_float16_is_refused_after_loading_too():
    with pytest.raises(InputError, match="does not support --fp16"):
        build_model(**T5).half()


def test_two_dictionaries_are_refused():
    args = argparse.Namespace()
    SwitchableT5Model.fill(args, SIZES["tiny"])
    task = SimpleNamespace(source_dictionary=build_dictionary(), target_dictionary=build_dictionary(7))
    with pytest.raises(InputError, match="give both the same dictionary"):
        SwitchableT5Model.check(args, task)


def test_checkpoints_load_with_and_without_a_policy_and_foreign_ones_are_named():
    model, other = build_model(**T5), build_model(**T5)
    state = model.state_dict()
    other.load_state_dict({name: value.clone() for name, value in state.items()})
    batch = random_batch()
    decisions = random_decisions(model.space, 6)
    path = PathRequest(decisions=decisions)
    expected = model(batch.src_tokens, None, batch.prev_output_tokens, path=path)[0]
    assert torch.equal(other(batch.src_tokens, None, batch.prev_output_tokens, path=path)[0], expected)
    other.load_state_dict({name: value for name, value in state.items() if "policy" not in name})
    with pytest.raises(InputError, match="not one of a switchable_t5"):
        other.load_state_dict({"encoder.embed_tokens.weight": torch.zeros(100, 32)})
    with pytest.raises(InputError, match="a dictionary of 99 symbols, the data's has 100"):
        build_model(**T5).load_state_dict({**state, "encoder.embed_tokens.weight": torch.zeros(99, 32)})
    with pytest.raises(InputError, match="not finite"):
        broken = {**state, "encoder.layer_norm.weight": torch.full((32,), float("nan"))}
        build_model(**T5).load_state_dict(broken)


@torch.no_grad()
@every_variant
@pytest.mark.parametrize("beam", [1, 3])
def test_the_fast_generator_runs_what_a_path_keeps_and_no_more(variant, beam):
    """Traced FLOPs equal the closed form, but that a hypothesis reads the keys of all, under a mask."""
    model = build_model(**T5_VARIANTS[variant])
    shape = dataclasses.replace(model.shape, policy_networks=0)
    for length in (19, 7):
        batch, decisions = random_batch([length]), random_decisions(model.space, 1, 0.5)
        generator = SequenceGenerator(FastModel(model), model.decoder.dictionary, beam_size=beam, max_len_b=6)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            hypotheses = generator.generate([model], {"net_input": along(batch, decisions)})[0]
        steps = max(len(one["tokens"]) for one in hypotheses)
        lengths = Lengths(batch.src_lengths, torch.tensor([steps]), beam)
        others = 2 * shape.attention_dim * steps * (steps + 1) * beam * (beam - 1)  # of the other hypotheses' keys
        read = int(decisions.decoder_attention.sum()) * others
        assert counter.get_total_flops() == int(path_flops("generation", shape, model.space, decisions, lengths)) + read


@torch.no_grad()
@pytest.mark.parametrize("precision,bound", [("float32", 1e-5), ("bfloat16", 0.1), ("int8", 0.3)])
def test_other_precisions_of_the_fast_generator_stay_close(precision, bound):
    model, batch = build_model(**T5), random_batch()
    expected = FastModel(model)
    found = FastModel(model, precision)
    tokens = torch.full((6, 1), model.decoder.eos)
    values = [one.forward_decoder(tokens, one.forward_encoder(batch.net_input), [{}])[0] for one in (expected, found)]
    difference = (values[0].exp() - values[1].exp()).abs().sum(dim=1)
    assert float(difference.max()) < bound


def test_float16_is_refused_by_the_fast_generator():
    with pytest.raises(InputError, match="--sd-generation-precision float16: a trained T5 overflows"):
        FastModel(build_model(**T5), "float16").forward_encoder(random_batch().net_input)
