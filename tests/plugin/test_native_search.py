"""A native step gives the logits of PyTorch's step, whatever is skipped, however long, whoever is finished."""

import pytest
import torch
from factories import build_model, random_batch, random_decisions

from sd_fairseq.execution import packed_linear
from sd_fairseq.execution.native import library
from sd_fairseq.plugin.generation import native_search
from sd_fairseq.plugin.generation.fast_decoder import DecoderSearch
from sd_fairseq.plugin.generation.fast_encoder import EncodedSource
from sd_fairseq.plugin.generation.fast_model import PRECISIONS, FastModel
from sd_fairseq.plugin.generation.fast_weights import FastWeights
from sd_fairseq.plugin.generation.native_search import NativeSearch, runs_natively, start_search

LENGTHS = (20, 13, 7, 33, 2, 16)
BOUNDS = {"float32": 1e-4, "bfloat16": 0.15}  # of logits of size 5
SIZES = {
    "heads of 8": {},
    "heads of 22, uneven outputs": {"encoder_embed_dim": 352, "encoder_ffn_embed_dim": 416, "heads": 16},
    "heads of 80": {"encoder_embed_dim": 160, "heads": 2},
}

KINDS = {
    "cross-attention apart": {"sd_cross_attention_apart": True},
    "skip keeps LayerNorm": {"sd_skip_keeps_layer_norm": True},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "pre-norm, skip keeps LayerNorm": {"decoder_normalize_before": True, "sd_skip_keeps_layer_norm": True},
    "ReLU, no LayerNorm of embeddings": {"activation_fn": "relu", "layernorm_embedding": False},
}

pytestmark = pytest.mark.skipif(library.load() is None, reason="the native decoder step cannot be had here")


def build(**options):
    heads = options.pop("heads", 4)
    torch.manual_seed(3)
    options = {"sd_policy": "network", **options}
    model = build_model(encoder_attention_heads=heads, decoder_attention_heads=heads, **options)
    with torch.no_grad():  # sums are as large in every size
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= (32 / model.decoder.embed_tokens.embedding_dim) ** 0.5
    return model.eval()


def random_source(model, precision, decisions, lengths=LENGTHS):
    dtype = PRECISIONS[precision].dtype
    dim = model.decoder.embed_tokens.embedding_dim
    generator = torch.Generator().manual_seed(7)
    x = torch.cat([torch.randn(length, dim, generator=generator) for length in lengths]).to(dtype)
    return EncodedSource(x, list(lengths), decisions)


@torch.no_grad()
def drive(search, sentences, beam, steps=9, leaving=None):
    """Logits of a search with random tokens and parents; ``leaving`` = the sentences that finish after each step."""
    generator, found = torch.Generator().manual_seed(11), []
    alive = list(range(sentences))
    tokens = torch.full((sentences * beam, 1), 2)
    for step in range(steps):
        found.append({one: part for one, part in zip(alive, search.step(tokens).float().split(beam))})
        parents = torch.randint(beam, (sentences, beam), generator=generator)
        newest = torch.randint(4, 90, (sentences, beam), generator=generator)
        left = [one for one in alive if one not in (leaving or {}).get(step, ())]
        order = torch.cat([parents[one] + alive.index(one) * beam for one in left])
        alive = left
        tokens = torch.cat([tokens[order], newest[left].reshape(-1, 1)], dim=1)
        search.reorder(order)
    return found


def check_close(found, expected, bound):
    for one, other in zip(found, expected):
        assert list(one) == list(other)
        for sentence in one:
            torch.testing.assert_close(one[sentence], other[sentence], atol=bound, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("beam", [1, 4, 7])
@pytest.mark.parametrize("precision", BOUNDS)
def test_native_steps_equal_pytorchs(precision, beam, size):
    model = build(**SIZES[size])
    weights = FastWeights(model, PRECISIONS[precision])
    for keep in (0.0, 0.3, 0.7, 1.0):
        source = random_source(model, precision, random_decisions(model.space, len(LENGTHS), keep))
        leaving = {1: [2], 3: [0, 5], 4: [3]}
        found = [drive(way(model, weights, source, beam), 6, beam, 7, leaving) for way in (NativeSearch, DecoderSearch)]
        check_close(*found, BOUNDS[precision])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_native_steps_equal_pytorchs_in_every_kind_of_model(precision, kind):
    model = build(**KINDS[kind])
    weights = FastWeights(model, PRECISIONS[precision])
    source = random_source(model, precision, random_decisions(model.space, len(LENGTHS), 0.6))
    found = [drive(way(model, weights, source, 3), 6, 3, 5, {2: [1]}) for way in (NativeSearch, DecoderSearch)]
    check_close(*found, BOUNDS[precision])


def test_bfloat16_is_nearer_to_float32_than_pytorchs():
    """Between the sub-layers nothing is rounded."""
    model, found = build(encoder_embed_dim=64), {}
    decisions = random_decisions(model.space, len(LENGTHS), 0.8)
    for name, precision, way in (
        ("exact", "float32", DecoderSearch),
        ("pytorch", "bfloat16", DecoderSearch),
        ("native", "bfloat16", NativeSearch),
    ):
        weights = FastWeights(model, PRECISIONS[precision])
        logits = drive(way(model, weights, random_source(model, precision, decisions), 4), 6, 4)
        found[name] = torch.stack([part for step in logits for part in step.values()])
    errors = {name: float((found[name] - found["exact"]).abs().mean()) for name in ("pytorch", "native")}
    assert errors["native"] < errors["pytorch"], errors


@pytest.mark.parametrize("precision", BOUNDS)
def test_batch_mates_do_not_matter(precision):
    model = build()
    weights = FastWeights(model, PRECISIONS[precision])
    decisions = random_decisions(model.space, len(LENGTHS), 0.6)
    together = NativeSearch(model, weights, random_source(model, precision, decisions), 1)
    tokens = torch.randint(4, 90, (6, 1))
    logits = together.step(tokens)
    starts = [sum(LENGTHS[:row]) for row in range(6)]
    x = random_source(model, precision, decisions).x
    for row, (start, length) in enumerate(zip(starts, LENGTHS)):
        own = EncodedSource(x[start : start + length], [length], decisions.index_select(torch.tensor([row])))
        alone = NativeSearch(model, weights, own, 1).step(tokens[row : row + 1])
        torch.testing.assert_close(alone[0], logits[row], atol=BOUNDS[precision] / 10, rtol=0)


@pytest.mark.parametrize("precision", BOUNDS)
def test_the_number_of_threads_does_not_matter(precision):
    model = build(**SIZES["heads of 22, uneven outputs"])
    weights = FastWeights(model, PRECISIONS[precision])
    source = random_source(model, precision, random_decisions(model.space, len(LENGTHS), 0.6))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(drive(NativeSearch(model, weights, source, 3), 6, 3, 4))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        check_close(found[0], other, BOUNDS[precision] / 10)


@torch.no_grad()
def test_what_no_sentence_keeps_is_not_read():
    model = build()
    decisions = random_decisions(model.space, 2, 0.5)
    keeps = decisions.decoder_attention, decisions.decoder_cross_attention, decisions.decoder_ffn
    source = random_source(model, "float32", decisions, (5, 9))
    expected = drive(NativeSearch(model, FastWeights(model, PRECISIONS["float32"]), source, 2), 2, 2)
    spoilt = 0
    for index, layer in enumerate(model.decoder.layers):
        parts = (layer.self_attn, layer.self_attn_layer_norm), (layer.encoder_attn, layer.encoder_attn_layer_norm)
        parts += ((layer.fc1, layer.fc2, layer.final_layer_norm),)
        for keep, modules in zip(keeps, parts):
            if not bool(keep[:, index].any()):
                spoilt += 1
                for module in modules:
                    for parameter in module.parameters():
                        parameter.fill_(float("nan"))
    assert spoilt > 0
    found = drive(NativeSearch(model, FastWeights(model, PRECISIONS["float32"]), source, 2), 2, 2)
    check_close(found, expected, 0)


def test_what_runs_natively(monkeypatch):
    model = build()
    decisions = random_decisions(model.space, 6, 0.6)
    source = random_source(model, "float32", decisions)
    rows = native_search.MOST_ROWS // 6
    for precision, expected in {"float32": True, "bfloat16": True, "float16": False, "int8": False}.items():
        assert runs_natively(model, FastWeights(model, PRECISIONS[precision]), source, rows) == expected
    weights = FastWeights(model, PRECISIONS["float32"])
    assert not runs_natively(model, weights, source, rows + 1)
    assert type(start_search(model, weights, source, rows)) is NativeSearch
    assert type(start_search(model, weights, source, rows + 1)) is DecoderSearch
    for options in ({"activation_fn": "tanh"}, {"encoder_ffn_embed_dim": 72}):
        other = build(**options)
        assert not runs_natively(other, FastWeights(other, PRECISIONS["float32"]), source, 1)
    monkeypatch.setenv(library.SWITCH, "0")
    assert not runs_natively(model, weights, source, rows)


@torch.no_grad()
def test_weights_are_held_in_one_layout(monkeypatch):
    """Row by row for few rows, packed for many; the products are the same before and after."""
    monkeypatch.setattr(packed_linear, "PACK_FROM", 0)
    model, batch = build(), random_batch()
    weights = FastModel(model, "bfloat16")
    weights.forward_encoder(batch.net_input)
    product = weights.weights.decoder_layers[0].ffn.first
    if not product.is_packed:
        pytest.skip("oneDNN packs no bfloat16 on this machine")
    plain = product.row_major().clone()
    x = torch.randn(40, plain.size(1)).bfloat16()
    first = product(x)
    assert product.weight.is_mkldnn
    assert torch.equal(product.row_major(), plain) and not product.weight.is_mkldnn
    assert torch.equal(product(x), first)
