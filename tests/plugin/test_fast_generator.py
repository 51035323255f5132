"""The fast generator gives fairseq's hypotheses, token for token, and does not run what is skipped."""

import gzip
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from factories import (
    PROMPT_VARIANTS,
    T5_VARIANTS,
    VOCABULARY,
    along,
    build_model,
    distinguish,
    random_batch,
    random_decisions,
    undecide,
)
from fairseq import search
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator

from sd_fairseq.execution import packed_linear
from sd_fairseq.execution.native import library
from sd_fairseq.plugin.generation import fast_encoder, fast_weights, native_search
from sd_fairseq.plugin.generation.fast_model import FastModel, why_not_fast
from sd_fairseq.plugin.generation.fast_weights import FeedForward
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.switchable_encoder import PathRequest
from sd_fairseq.plugin.repairs.ngram_blocker import NGramBlocker
from sd_fairseq.plugin.tasks.switchable_task import SwitchableTaskMixin

DOCUMENTS = Path(__file__).parents[2] / "examples" / "data" / "debian" / "train.jsonl.gz"
VARIANTS = {
    "together": {},
    "cross-attention apart": {"sd_cross_attention_apart": True},
    "skip keeps LayerNorm": {"sd_skip_keeps_layer_norm": True},
    "first attention always runs": {"sd_always_run_attention": 1},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "layer-wise policy": {"sd_policy": "layerwise"},
    "sinusoidal positions, ReLU": {
        "encoder_learned_pos": False,
        "decoder_learned_pos": False,
        "activation_fn": "relu",
    },
    "tanh": {"activation_fn": "tanh"},
    **T5_VARIANTS,
    **{name: options for name, options in PROMPT_VARIANTS.items() if name.startswith("LLaMA")},
}
SEARCHES = {
    "length penalty": {"len_penalty": 2.0},
    "lengths": {"min_len": 5, "max_len_a": 0.3, "max_len_b": 4},
    "unnormalised": {"normalize_scores": False, "unk_penalty": 1.0},
    "temperature": {"temperature": 1.7},
    "bigrams": {"no_repeat_ngram_size": 2},
    "longer than the first cache": {"min_len": 70, "max_len_b": 140},
}


@pytest.fixture(params=["pytorch", "native"])
def steps(request, monkeypatch):
    """Decoder steps in PyTorch, or natively whatever the number of rows."""
    if request.param == "pytorch":
        monkeypatch.setenv(library.SWITCH, "0")
    elif library.load() is None:
        pytest.skip("the native decoder step cannot be had here")
    monkeypatch.setattr(native_search, "MOST_ROWS", 10**6)
    return request.param


def build(variant="together", seed=1):
    torch.manual_seed(seed)
    options = {"sd_policy": "network", "max_target_positions": 160, **VARIANTS[variant]}
    model = build_model(**options)
    undecide(model)
    return model.eval()


def run(model, net_input, beam, fast, prefix=None, strategy=None, **options):
    """Searches with fairseq's way of running the model, or the fast one."""
    dictionary = model.decoder.dictionary
    ngram = options.pop("no_repeat_ngram_size", 0)
    options = {"max_len_b": 12, "search_strategy": strategy, **options}
    generator = SequenceGenerator(FastModel(model) if fast else [model], dictionary, beam, **options)
    generator.repeat_ngram_blocker = NGramBlocker(ngram) if ngram else None
    return generator.generate([model], {"net_input": dict(net_input)}, prefix_tokens=prefix)


def check_same(expected, found):
    assert len(expected) == len(found)
    for group, other in zip(expected, found):
        assert [one["tokens"].tolist() for one in group] == [one["tokens"].tolist() for one in other]
        for one, same in zip(group, other):
            for key in ("score", "positional_scores"):
                torch.testing.assert_close(same[key], one[key], atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("beam", [1, 4, 5])
def test_fast_equals_fairseq(variant, beam, steps):
    model, batch = build(variant), random_batch()
    assert len({str(model.space.describe(path, 0)) for path in paths_of(model, batch)}) > 1, "paths should differ"
    expected = run(model, batch.net_input, beam, fast=False)
    check_same(expected, run(model, batch.net_input, beam, fast=True))
    assert len({max(len(one["tokens"]) for one in group) for group in expected}) > 1, "sentences should end apart"


@pytest.mark.parametrize("beam", [1, 4])
def test_fast_equals_fairseq_with_packed_weights(beam, monkeypatch):
    """Weights of tests are too small to be packed otherwise."""
    monkeypatch.setattr(packed_linear, "PACK_FROM", 0)
    monkeypatch.setenv(library.SWITCH, "0")
    model, batch = build(), random_batch()
    assert packed_linear.can_pack(model.decoder.layers[0].fc1.weight) == torch.backends.mkldnn.is_available()
    check_same(run(model, batch.net_input, beam, fast=False), run(model, batch.net_input, beam, fast=True))


def paths_of(model, batch):
    decisions = model.encoder(batch.src_tokens)["decisions"][0]
    return [decisions.index_select(torch.tensor([row])) for row in range(len(decisions))]


@pytest.mark.parametrize("options", SEARCHES)
@pytest.mark.parametrize("beam", [1, 4])
def test_fast_equals_fairseq_under_every_search_option(options, beam, steps):
    model, batch = build(), random_batch()
    expected = run(model, batch.net_input, beam, fast=False, **SEARCHES[options])
    check_same(expected, run(model, batch.net_input, beam, fast=True, **SEARCHES[options]))


def test_fast_equals_fairseq_with_prefixes(steps):
    model, batch = build(), random_batch()
    prefix = torch.randint(4, VOCABULARY, (6, 3))
    prefix[1, 2] = prefix[4, 1] = prefix[4, 2] = model.decoder.dictionary.pad()
    for beam in (1, 4):
        expected = run(model, batch.net_input, beam, fast=False, prefix=prefix)
        check_same(expected, run(model, batch.net_input, beam, fast=True, prefix=prefix))


@pytest.mark.parametrize("strategy", ["sampling", "siblings"])
def test_fast_equals_fairseq_with_other_searches(strategy, steps):
    model, batch, found = build(), random_batch(), []
    dictionary = model.decoder.dictionary
    for fast in (False, True):
        sampling, siblings = search.Sampling(dictionary, 20), search.DiverseSiblingsSearch(dictionary, 0.5)
        torch.manual_seed(5)
        chosen = sampling if strategy == "sampling" else siblings
        found.append(run(model, batch.net_input, 4, fast, strategy=chosen))
    check_same(*found)


@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
def test_fast_equals_fairseq_on_given_paths(keep, steps):
    model, batch = build("cross-attention apart"), random_batch()
    net_input = along(batch, random_decisions(model.space, 6, keep))
    check_same(run(model, net_input, 4, fast=False), run(model, net_input, 4, fast=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_fast_equals_fairseq_where_no_two_norms_are_alike(variant, steps):
    model, batch = build(variant), random_batch()
    distinguish(model)
    net_input = along(batch, random_decisions(model.space, 6, 0.7))
    check_same(run(model, net_input, 3, fast=False), run(model, net_input, 3, fast=True))


def test_scores_of_long_sentences_are_made_a_few_heads_at_a_time(monkeypatch):
    """The scores of sentences x heads x length x length never stand in memory together."""
    sizes, softmax = [], torch.softmax
    monkeypatch.setattr(fast_encoder, "SCORES_AT_ONCE", 3 * 40 * 40)
    monkeypatch.setattr(
        torch, "softmax", lambda scores, **more: sizes.append(scores.numel()) or softmax(scores, **more)
    )
    queries, keys, values = (torch.randn(2, 4, 40, 8, dtype=torch.bfloat16) for _ in range(3))
    found = fast_encoder.attend_sentences(queries, keys, values)
    assert max(sizes) <= 3 * 40 * 40 and sum(sizes) == 2 * 4 * 40 * 40
    whole = torch.softmax((queries @ keys.transpose(2, 3)).float(), dim=-1) @ values.float()
    torch.testing.assert_close(found.float(), whole, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("beam", [1, 4, 5])
def test_fast_equals_fairseq_on_500_real_documents(beam, steps):
    documents = read_documents(500)
    counts = Counter(word for words in documents for word in words)
    dictionary = Dictionary()
    for word, _ in counts.most_common(500):
        dictionary.add_symbol(word)
    torch.manual_seed(2)
    model = build_model(dictionary=dictionary, sd_policy="network", max_source_positions=512)
    undecide(model)
    different = 0
    for start in range(0, len(documents), 50):
        sources = [[dictionary.index(word) for word in words] for words in documents[start : start + 50]]
        width = max(map(len, sources)) + 1
        rows = [[dictionary.pad()] * (width - 1 - len(one)) + one + [dictionary.eos()] for one in sources]
        src_tokens = torch.tensor(rows)
        net_input = {"src_tokens": src_tokens, "src_lengths": src_tokens.ne(dictionary.pad()).sum(1)}
        options = {"no_repeat_ngram_size": 3, "len_penalty": 1.5, "min_len": 2, "max_len_b": 20}
        expected = run(model, net_input, beam, fast=False, **options)
        check_same(expected, run(model, net_input, beam, fast=True, **options))
        different += len({tuple(group[0]["tokens"].tolist()) for group in expected})
    assert different > 100, "the model should not say the same of every document"


def read_documents(count):
    with gzip.open(DOCUMENTS, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    texts = [record["document"] for record in records]
    return [text.split()[:200] for text in texts[:count]]


def test_fast_model_follows_an_optimizer(steps):
    """Also one that writes to the weights' data behind the version counter's back."""
    model, batch = build(), random_batch()
    fast = FastModel(model)
    generator = SequenceGenerator(fast, model.decoder.dictionary, 4, max_len_b=12)
    sample = {"net_input": batch.net_input}
    before = generator.generate([model], sample)
    packed = fast.weights
    generator.generate([model], sample)
    assert fast.weights is packed, "weights that stand still should not be packed again"
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    after = generator.generate([model], sample)
    check_same(run(model, batch.net_input, 4, fast=False), after)
    assert [one[0]["tokens"].tolist() for one in before] != [one[0]["tokens"].tolist() for one in after]


def test_nothing_of_a_search_stays_behind(steps):
    model, batch = build(), random_batch()
    expected = model(batch.src_tokens, batch.src_lengths, batch.prev_output_tokens)[0]
    first = run(model, batch.net_input, 4, fast=True)
    assert torch.equal(model(batch.src_tokens, batch.src_lengths, batch.prev_output_tokens)[0], expected)
    check_same(first, run(model, batch.net_input, 4, fast=True))


def test_skipped_sublayers_are_not_run(monkeypatch):
    """Feed-forward products see exactly the tokens of the examples that keep them."""
    monkeypatch.setenv(library.SWITCH, "0")
    model, batch = build(), random_batch()
    decisions = random_decisions(model.space, 6, 0.5)
    decisions = decisions.__class__(**{**decisions.__dict__, "token_choice": torch.zeros(6, dtype=torch.long)})
    rows, plain = Counter(), FeedForward.__call__

    def counted(self, x):
        rows[id(self)] += x.size(0)
        return plain(self, x)

    monkeypatch.setattr(FeedForward, "__call__", counted)
    fast = FastModel(model)
    generator = SequenceGenerator(fast, model.decoder.dictionary, 2, min_len=3, max_len_b=3)
    generator.generate([model], {"net_input": along(batch, decisions)})
    for index, layer in enumerate(fast.weights.encoder_layers):
        assert rows[id(layer.ffn)] == int((decisions.encoder_ffn[:, index] * batch.src_lengths).sum())
    for index, layer in enumerate(fast.weights.decoder_layers):
        assert rows[id(layer.ffn)] == int(decisions.decoder_ffn[:, index].sum()) * 2 * 4  # beam, steps with the end


@torch.no_grad()
@pytest.mark.parametrize("precision, bound", [("bfloat16", 0.15), ("int8", 0.15)])
def test_lower_precision_stays_close(precision, bound, steps):
    """Hypotheses of lower precision score nearly what the float32 model gives them on the same path."""
    model, batch = build(), random_batch()
    decisions = random_decisions(model.space, 6, 0.7)
    dictionary = model.decoder.dictionary
    generator = SequenceGenerator(FastModel(model, precision), dictionary, 4, max_len_b=12)
    for row, group in enumerate(generator.generate([model], {"net_input": along(batch, decisions)})):
        own = PathRequest(decisions=decisions.index_select(torch.tensor([row])))
        tokens = group[0]["tokens"]
        previous = torch.cat([torch.tensor([dictionary.eos()]), tokens[:-1]]).unsqueeze(0)
        source = batch.sources[row].unsqueeze(0)
        log_probs = model(source, None, previous, path=own)[0].log_softmax(dim=-1)[0]
        expected = log_probs.gather(1, tokens.unsqueeze(1)).sum()
        found = group[0]["positional_scores"].sum()
        assert abs(float(found - expected)) / len(tokens) < bound


class Task(SwitchableTaskMixin, SimpleNamespace):
    """As much of a task as building a generator takes."""


@pytest.mark.parametrize(
    "args, reason",
    [
        ({}, None),
        ({"print_alignment": "hard"}, "alignments"),
        ({"replace_unk": ""}, "alignments"),
        ({"retain_dropout": True}, "retain-dropout"),
    ],
)
def test_what_the_fast_model_cannot_do_is_left_to_fairseq(args, reason):
    model = build()
    found = why_not_fast([model], SimpleNamespace(**args))
    assert found is None if reason is None else reason in found
    assert "ensemble of 2" in why_not_fast([model, model], SimpleNamespace())
    assert "BARTModel" in why_not_fast([build_model("bart_base")], SimpleNamespace())


def test_a_precision_that_only_the_fast_model_has_is_refused_elsewhere():
    cfg = SimpleNamespace(sd_generator="fairseq", sd_generation_precision="int8")
    task = Task(cfg=cfg)
    with pytest.raises(InputError, match="int8 needs the fast generator"):
        task._run_fast(SimpleNamespace(), [build()], SimpleNamespace())


def test_bfloat16_attention_of_a_long_source_is_that_of_all_heads():
    """A source so long that its heads are computed some at a time."""
    torch.manual_seed(1)
    length, heads = 1100, 4
    assert heads * length * length > 2 * fast_encoder.SCORES_AT_ONCE
    parts = [torch.randn(1, heads, length, 8) for _ in range(3)]
    expected = torch.nn.functional.scaled_dot_product_attention(*parts, scale=1.0)
    found = fast_encoder.attend_sentences(*(part.bfloat16() for part in parts)).float()
    assert torch.isfinite(found).all()
    assert (found - expected).abs().amax(dim=(0, 2, 3)).max() < 0.15
    assert (found - expected).abs().mean(dim=(0, 2, 3)).max() < 0.01


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_packed_weights_are_renewed_when_either_stack_learns(stack):
    model = build()
    net_input = random_batch([5, 3]).net_input
    fast = FastModel(model)
    fast.forward_encoder(net_input)
    packed = fast.weights
    fast.forward_encoder(net_input)
    assert fast.weights is packed
    weight = getattr(model, stack).layers[0].fc1.weight
    weight.data.add_(0.1)  # the way of optimizers that leave the version counter alone
    fast.forward_encoder(net_input)
    assert fast.weights is not packed


def test_scaled_embeddings_are_scaled_in_the_search_too(steps):
    torch.manual_seed(1)
    model = build_model(sd_policy="dense", no_scale_embedding=False).eval()
    assert model.decoder.embed_scale > 1
    net_input = random_batch([9, 4]).net_input
    check_same(run(model, net_input, 3, fast=False), run(model, net_input, 3, fast=True))


@pytest.mark.parametrize("factor", [0.25, 1.0, 2.0])
def test_packed_weights_are_scaled_by_any_factor(factor):
    value = torch.randn(3, 4, requires_grad=True)
    found = fast_weights.scaled(value, factor)
    assert torch.equal(found, value * factor) and not found.requires_grad
