"""``--sd-policy static``: one path for every input."""

import pytest
import torch
from factories import build_model, generate, random_batch
from training import build_samples, build_training

from sd_fairseq.cost.path_flops import Lengths, path_flops
from sd_fairseq.plugin.generation.fast_model import FastModel
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.fixed_path import parse_path, path_decisions
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

PATH = "encoder_ffn==01,decoder_attention=01=,token_strategy=last:30"


def static(path=PATH, **options):
    torch.manual_seed(3)
    return build_model(sd_policy="static", sd_static_path=path, **options)


def twin():
    """The same weights with a policy network."""
    model = build_model()
    model.load_state_dict(static().state_dict(), strict=False)
    return model


def test_every_example_takes_the_path():
    model, batch = static(), random_batch()
    found, extra = model(**batch.net_input, prev_output_tokens=batch.prev_output_tokens)
    wanted = path_decisions(parse_path(PATH, model.space), model.space, len(batch.sources))
    assert bool(extra["decisions"].same_path(wanted).all())
    other = twin()
    request = PathRequest(decisions=wanted)
    expected, _ = other(**batch.net_input, prev_output_tokens=batch.prev_output_tokens, path=request)
    assert torch.equal(found, expected)


def test_it_generates_the_same_with_both_generators():
    model, batch = static(), random_batch()
    slow = generate([model], batch.net_input, 3)
    fast = FastModel(model)
    from fairseq.sequence_generator import SequenceGenerator

    search = SequenceGenerator([model], model.decoder.dictionary, beam_size=3, max_len_b=12)
    search.model = fast
    fast.set_decoder_beam_size(3)
    for one, other in zip(slow, search.generate([model], {"net_input": batch.net_input})):
        assert [h["tokens"].tolist() for h in one] == [h["tokens"].tolist() for h in other]


def test_it_has_nothing_to_learn_and_costs_nothing_to_ask():
    model = static()
    assert model.policy_learner is None and not list(model.encoder.policy.parameters())
    lengths = Lengths(torch.tensor([20]), torch.tensor([6]), 2)
    path = path_decisions(parse_path(PATH, model.space), model.space, 1)
    asked = path_flops("generation", twin().shape, model.space, path, lengths)
    assert float(path_flops("generation", model.shape, model.space, path, lengths)) < float(asked)


def test_the_backbone_trains_on_the_path():
    training, (sample,) = (
        build_training({"sd_policy": "static", "sd_static_path": PATH}, mixed_paths=False),
        build_samples(),
    )
    skipped = training.model.encoder.layers[1].fc1.weight  # encoder FFN of layer 2
    before, rest = skipped.detach().clone(), training.backbone()
    (logged,) = training.update([sample])
    assert torch.equal(skipped, before) and not torch.equal(training.backbone(), rest)
    assert logged["sd_distinct_paths"] == 1


@pytest.mark.parametrize("path", ["", "fastest", "encoder_ffn=0", "encoder_ffn=011", "token_strategy=last:99"])
def test_a_path_that_the_model_cannot_take_is_one_line(path):
    with pytest.raises(InputError, match="--sd-static-path") as caught:
        static(path)
    assert "\n" not in str(caught.value)
