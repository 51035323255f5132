"""The hub interface of fairseq's BART on a switchable model: from_pretrained, sample, predict, fill_mask."""

import pytest
import torch
from dropin import layouts

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.switchable_bart import SwitchableBARTModel

pytest.importorskip("fairseq")
from fairseq.models.bart import BARTModel  # noqa: E402


def words_in_data(zoo):
    """Real source lines, as many words as the small model takes."""
    return (zoo.texts / "train.source").read_text(encoding="utf-8").splitlines()[:4]


def from_pretrained(kind, zoo, path, **options):
    return kind.from_pretrained(str(path.parent), path.name, str(zoo.data), bpe=None, **options).eval()


@pytest.fixture(scope="module")
def with_head(zoo):
    return zoo.rewritten(zoo.plain, "hub.head.pt", layouts.with_heads)


@pytest.fixture
def identity_bpe(monkeypatch):
    """Words are the units: the data have no byte-pair encoding, which the hub insists on."""
    from fairseq.data import encoders

    class Words:
        def encode(self, text):
            return text

        def decode(self, text):
            return text

    monkeypatch.setattr(encoders, "build_bpe", lambda cfg: Words())


@pytest.fixture
def pair(zoo, with_head, identity_bpe):
    """The same plain checkpoint as fairseq's BART and as ours."""
    return from_pretrained(BARTModel, zoo, with_head), from_pretrained(SwitchableBARTModel, zoo, with_head)


@torch.no_grad()
def test_a_plain_checkpoint_gives_what_fairseqs_bart_gives_bit_for_bit(zoo, pair):
    bart, ours = pair
    assert type(ours.model) is SwitchableBARTModel and type(bart.model) is BARTModel
    assert type(ours.task).__name__ == "SwitchableTranslationTask"
    for text in words_in_data(zoo):
        tokens = bart.encode(text)
        assert torch.equal(ours.encode(text), tokens)
        assert torch.equal(ours.extract_features(tokens), bart.extract_features(tokens))
        states = zip(ours.extract_features(tokens, True), bart.extract_features(tokens, True))
        assert all(torch.equal(left, right) for left, right in states)
        assert torch.equal(ours.predict("mnli", tokens), bart.predict("mnli", tokens))


@torch.no_grad()
def test_unknown_words_are_unk_and_the_dictionary_stays(zoo, pair):
    """fairseq's hub adds them to the dictionary and then finds no row for them in the model."""
    _, ours = pair
    dictionary = ours.task.source_dictionary
    before, known = list(dictionary.symbols), words_in_data(zoo)[0].split()[0]
    for text in ("\u65e5\u672c", f"{known} \u65e5\u672c {known}", "\U0001f600 \u0301", "<extra>"):
        tokens = ours.encode(text).tolist()
        assert tokens.count(dictionary.unk()) == sum(word not in before for word in text.split())
        assert max(tokens) < len(before)
        assert isinstance(ours.sample([text], beam=2, max_len_b=4)[0], str)
    assert ours.encode("\u65e5", "\u672c", no_separator=False).tolist() == [0, 3, 2, 2, 3, 2]
    assert list(dictionary.symbols) == before and len(dictionary) == len(before)


@torch.no_grad()
def test_weights_are_packed_once_for_a_model_and_anew_when_they_change(zoo, pair, monkeypatch):
    """fairseq's hub builds a generator a call; the packed weights are the model's."""
    from sd_fairseq.plugin.generation import fast_weights

    _, ours = pair
    made = []
    build = fast_weights.FastWeights.__init__
    monkeypatch.setattr(
        fast_weights.FastWeights, "__init__", lambda self, *more: (made.append(1), build(self, *more))[1]
    )
    for _ in range(3):
        ours.sample(words_in_data(zoo), beam=2, max_len_b=4)
    assert len(made) == 1
    ours.model.decoder.layers[0].fc1.weight.data.add_(0.1)  # as an optimizer that touches no version counter
    ours.sample(words_in_data(zoo), beam=2, max_len_b=4)
    assert len(made) == 2
    ours.task.cfg.sd_generation_precision = "bfloat16"
    for _ in range(2):
        ours.sample(words_in_data(zoo), beam=2, max_len_b=4)
    assert len(made) == 3


def test_packed_weights_go_with_their_model():
    import gc

    from factories import build_model

    from sd_fairseq.plugin.generation.fast_weights import PACKED, Precision, packed_weights

    gc.collect()  # models of other tests
    before, model = len(PACKED), build_model()
    assert packed_weights(model, Precision(torch.float32)) is packed_weights(model, Precision(torch.float32))
    assert len(PACKED) == before + 1
    del model
    gc.collect()
    assert len(PACKED) == before


def test_a_fingerprint_copies_all_values_at_once():
    """A GPU starts a kernel for each copy; a model has hundreds of weights."""
    from torch.overrides import TorchFunctionMode

    from sd_fairseq.plugin.generation.fast_weights import take_fingerprint

    class Count(TorchFunctionMode):
        copies = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            Count.copies += getattr(function, "__name__", "") in ("float", "to", "cpu", "clone", "contiguous")
            return function(*args, **(kwargs or {}))

    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(50))).bfloat16()
    with Count():
        values = take_fingerprint(model)[1]
    assert Count.copies <= 4 and values.dtype == torch.float32 and len(values) == 50 * (16 + 4)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"beam": 1}, {"beam": 4, "lenpen": 2.0, "min_len": 3}, {"beam": 2}], ids=str)
def test_samples_are_fairseqs(zoo, pair, options):
    bart, ours = pair
    lines = words_in_data(zoo)
    assert ours.sample(lines, max_len_b=8, **options) == bart.sample(lines, max_len_b=8, **options)
    assert ours.sample(lines[0], max_len_b=8, **options) == ours.sample(lines, max_len_b=8, **options)[0]


@torch.no_grad()
@pytest.mark.parametrize("checkpoint", ["plain", "mixed"])
def test_a_search_leaves_nothing_behind_in_the_model(zoo, with_head, identity_bpe, checkpoint):
    path = with_head if checkpoint == "plain" else zoo.mixed
    used, fresh = (from_pretrained(SwitchableBARTModel, zoo, path) for _ in range(2))
    lines = words_in_data(zoo)
    used.sample(lines, beam=4, max_len_b=8)
    tokens = torch.nn.utils.rnn.pad_sequence([fresh.encode(line) for line in lines], True, 1)
    assert torch.equal(used.extract_features(tokens), fresh.extract_features(tokens))
    if checkpoint == "plain":
        one = fresh.encode(lines[0])
        assert torch.equal(used.predict("mnli", one), fresh.predict("mnli", one))
    assert used.sample(lines, beam=1, max_len_b=8) == fresh.sample(lines, beam=1, max_len_b=8)
    if checkpoint == "mixed":
        assert used.model(tokens, None, tokens)[1]["decisions"].count_distinct_paths() > 1


@torch.no_grad()
def test_heads_can_be_registered_and_trained_ones_come_back(zoo, pair, tmp_path):
    _, ours = pair
    ours.register_classification_head("new", num_classes=5)
    tokens = ours.encode(words_in_data(zoo)[0])
    scores = ours.predict("new", tokens)
    assert scores.shape == (1, 5)
    torch.testing.assert_close(scores.exp().sum(), torch.tensor(1.0))
    assert ours.predict("new", tokens, return_logits=True).log_softmax(-1).equal(scores)


@torch.no_grad()
def test_masks_are_filled_as_fairseqs_bart_fills_them(zoo, identity_bpe):
    (zoo.data / "dict.txt").write_text((zoo.data / "dict.source.txt").read_text(encoding="utf-8"), encoding="utf-8")

    def denoising(state):
        layouts.with_mask_row(state)
        state["model"]["decoder.embed_tokens.weight"][-1] /= 20
        for key in ("encoder.embed_tokens.weight", "decoder.output_projection.weight"):
            state["model"][key] = state["model"]["decoder.embed_tokens.weight"]
        old = layouts.of_2019(state)
        vars(old["args"]).update(task="denoising", tokens_per_sample=64, sample_break_mode="eos")
        return old

    path = zoo.rewritten(zoo.plain, "denoising.pt", denoising)
    bart, ours = (from_pretrained(kind, zoo, path) for kind in (BARTModel, SwitchableBARTModel))
    lines = [line.split()[0] + " <mask> " + " ".join(line.split()[2:6]) for line in words_in_data(zoo)[:2]]
    for found, expected in zip(ours.fill_mask(lines, topk=2), bart.fill_mask(lines, topk=2)):
        assert [text for text, _ in found] == [text for text, _ in expected]
        torch.testing.assert_close(*(torch.stack([score for _, score in one]) for one in (found, expected)))


def test_options_given_to_from_pretrained_hold(zoo, identity_bpe):
    hub = from_pretrained(SwitchableBARTModel, zoo, zoo.plain, sd_policy="dense")
    assert hub.model.encoder.policy is None


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_checkpoint_that_cannot_be_loaded_is_one_line(zoo, identity_bpe, damage):
    path = zoo.folder / f"hub.{damage}.pt"
    if damage == "truncated":
        path.write_bytes(zoo.plain.read_bytes()[:-5000])
    if damage == "foreign":
        torch.save({"weights": torch.ones(2)}, str(path))
    with pytest.raises(InputError) as error:
        from_pretrained(SwitchableBARTModel, zoo, path)
    assert path.name in str(error.value) and "\n" not in str(error.value)


@torch.no_grad()
def test_the_hub_serves_the_budget_that_is_asked(zoo, identity_bpe):
    kept = []
    for budget in (0.3, 0.9):
        hub = from_pretrained(SwitchableBARTModel, zoo, zoo.any_budget, sd_flops_budget=budget)
        tokens = hub.task.source_dictionary.encode_line(words_in_data(zoo)[0]).long().unsqueeze(0)
        kept.append(int(hub.model.space.to_keep(hub.model.encoder(tokens)["decisions"][0]).sum()))
    assert kept == [0, hub.model.space.num_switches]
    with pytest.raises(InputError, match="trained with --sd-budget-range"):
        from_pretrained(SwitchableBARTModel, zoo, zoo.mixed, sd_flops_budget=0.5)
