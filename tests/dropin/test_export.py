"""A frozen path is plain BART: stock fairseq and CTranslate2 give the switchable model's output without this plugin."""

import math
import re

import pytest
import torch
from factories import TINY_OPTIONS, along, build_model, generate, random_batch

from sd_fairseq.decision.trace import read_trace

pytest.importorskip("fairseq")

from dropin.exporting import LANGUAGES, LIMIT, PLUGIN, Frozen, check_refused, export, load_plain, save  # noqa: E402

from sd_fairseq.plugin.models.fixed_path import path_decisions  # noqa: E402
from sd_fairseq.plugin.models.switchable_encoder import PathRequest  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # fairseq's, hydra's and CTranslate2's own
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
EXACT = {
    "whole layers removed": ({}, "encoder_attention=101,encoder_ffn=101,decoder_attention=011,decoder_ffn=011"),
    "neighbours merged": ({}, "encoder_attention=110,encoder_ffn=101,decoder_attention=101,decoder_ffn=011"),
    "dense": ({}, "dense"),
    "no shared embeddings, sinusoidal positions": (
        {
            "share_all_embeddings": False,
            "share_decoder_input_output_embed": False,
            "encoder_learned_pos": False,
            "decoder_learned_pos": False,
        },
        "encoder_attention=110,encoder_ffn=101",
    ),
    "cross-attention apart": (
        {"sd_cross_attention_apart": True, "sd_always_run_attention": 1},
        "decoder_attention=110,decoder_cross_attention=101,decoder_ffn=101",
    ),
    "skip keeps LayerNorm": (
        {"sd_skip_keeps_layer_norm": True},
        "encoder_attention=100,encoder_ffn=110,decoder_attention=011,decoder_ffn=100",
    ),
    "pre-norm": (PRE_NORM, "encoder_attention=100,encoder_ffn=110,decoder_attention=011,decoder_ffn=000"),
}


@torch.no_grad()
@pytest.mark.parametrize("case", EXACT)
def test_a_frozen_path_computes_what_the_switchable_model_computes_along_it(case, tmp_path, capsys):
    options, path = EXACT[case]
    model = build_model(**options)
    assert export(save(model, tmp_path / "model.pt", **options), tmp_path / "plain.pt", "--path", path) == 0
    kept = re.search("^path: (.*)$", capsys.readouterr().out, re.MULTILINE).group(1)
    plain, batch = load_plain(tmp_path / "plain.pt"), random_batch()
    decisions = path_decisions(dict(part.split("=", 1) for part in kept.split(",")), model.space, len(batch.sources))
    ours = model(batch.src_tokens, batch.src_lengths, batch.prev_output_tokens, path=PathRequest(decisions=decisions))
    theirs = plain(batch.src_tokens, batch.src_lengths, batch.prev_output_tokens)
    assert torch.equal(ours[0], theirs[0])
    for beam in (1, 4):
        for mine, stock in zip(
            generate([model], along(batch, decisions), beam), generate([plain], batch.net_input, beam)
        ):
            assert [h["tokens"].tolist() for h in mine] == [h["tokens"].tolist() for h in stock]
            assert [float(h["score"]) for h in mine] == [float(h["score"]) for h in stock]


@torch.no_grad()
def test_all_but_the_layers_is_copied_and_the_policy_and_duplicates_are_left_out(tmp_path):
    model = build_model()
    model.register_classification_head("sentences", num_classes=3)
    wide = dict(model.state_dict())
    for key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        wide[key] = torch.cat([wide[key], torch.randn(1, 32)])  # the row of <mask>
    wide["encoder.layers.1.in_proj_weight"] = torch.zeros(96, 32)  # as fairseq 0.12.2 duplicates it
    model.state_dict = lambda: wide
    assert export(save(model, tmp_path / "model.pt"), tmp_path / "plain.pt", "--path", "encoder_ffn=101") == 1
    path = "encoder_attention=101,encoder_ffn=101"
    assert export(tmp_path / "model.pt", tmp_path / "plain.pt", "--path", path) == 0
    plain = torch.load(str(tmp_path / "plain.pt"))["model"]
    rest = {key for key in wide if ".layers." not in key and "policy" not in key}
    assert {key for key in plain if ".layers." not in key} == rest
    assert all(torch.equal(plain[key], wide[key]) for key in rest)
    assert torch.equal(plain["encoder.layers.1.fc1.weight"], wide["encoder.layers.2.fc1.weight"])
    assert {key.split(".")[2] for key in plain if key.startswith("encoder.layers")} == {"0", "1"}
    assert not any(key.endswith("in_proj_weight") for key in plain)


def test_a_checkpoint_with_a_hydra_configuration_is_exported_alike(tmp_path):
    model = build_model()
    state = torch.load(save(model, tmp_path / "flat.pt"), weights_only=False)
    options = {**TINY_OPTIONS, "_name": "switchable_bart_base"}
    task = {"_name": "switchable_translation", "data": ".", "sd_trace": None, **LANGUAGES}
    torch.save({**state, "args": None, "cfg": {"model": options, "task": task}}, str(tmp_path / "hydra.pt"))
    for name in ("flat", "hydra"):
        assert export(tmp_path / f"{name}.pt", tmp_path / f"plain-{name}.pt", "--path", "dense") == 0
    flat, hydra = (torch.load(str(tmp_path / f"plain-{name}.pt")) for name in ("flat", "hydra"))
    for state in (flat, hydra):
        assert {**state["args"]} == vars(state["args"])  # as items and as attributes
        assert not [name for name in state["args"] if name.startswith("sd_")]
        assert "switchable" not in str(vars(state["args"]))
    assert len(hydra["args"]) > 30
    assert {name: flat["args"][name] for name in hydra["args"]} == {**hydra["args"]}
    assert flat["model"].keys() == hydra["model"].keys()


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return Frozen(tmp_path_factory.mktemp("frozen"))


def test_fairseq_generate_without_the_plugin_prints_the_same_hypotheses_and_scores(frozen):
    assert len({record.path for record in read_trace(str(frozen.folder / "trace.jsonl"))}) == 1
    assert len(frozen.ours) == len(frozen.sources)
    assert frozen.generate("plain.pt") == frozen.ours


def test_fairseq_validate_without_the_plugin_logs_the_same_nll(frozen):
    assert frozen.validate("plain.pt")["nll_loss"] == frozen.validate("model.pt", *PLUGIN)["nll_loss"] > 1


@pytest.fixture(scope="module")
def converted(frozen):
    """The frozen model in CTranslate2's format."""
    pytest.importorskip("ctranslate2", reason="needs CTranslate2: pip install ctranslate2")
    from ctranslate2.converters import FairseqConverter

    converter = FairseqConverter(str(frozen.folder / "plain.pt"), str(frozen.folder))
    for kind in ("float32", "int8"):
        converter.convert(str(frozen.folder / kind), quantization=kind)
    return frozen


def translate(converted, kind, beam):
    """Returns what CTranslate2 makes of the sources: {sentence: (score, words)}."""
    import ctranslate2

    translator = ctranslate2.Translator(str(converted.folder / kind), compute_type=kind, intra_threads=1)
    options = {"beam_size": beam, "min_decoding_length": 0, "max_decoding_length": LIMIT, "return_scores": True}
    results = translator.translate_batch(converted.sources, **options)
    return {number: (result.scores[0], result.hypotheses[0]) for number, result in enumerate(results)}


@pytest.mark.parametrize("beam", [1, 4])
def test_ctranslate2_gives_the_same_words_and_scores_in_float32(converted, beam):
    ours = converted.ours if beam == 4 else converted.search(beam)
    theirs = translate(converted, "float32", beam)
    # at the limit fairseq ends a hypothesis with the end of sentence and its score, CTranslate2 breaks it off
    ended = [number for number, (_, words) in ours.items() if len(words) < LIMIT]
    assert len(ended) >= 8
    assert max(len(ours[number][1]) for number in ended) > 20
    for number in ended:
        score, words = ours[number]
        assert theirs[number][1] == words
        assert theirs[number][0] == pytest.approx(float(score) * math.log(2), abs=1e-5)  # fairseq prints base 2


def test_ctranslate2_converts_to_int8_and_translates(converted):
    exact, rounded = (translate(converted, kind, 4) for kind in ("float32", "int8"))
    close = [number for number, (score, _) in exact.items() if abs(score - rounded[number][0]) < 0.05]
    assert len(close) >= 8
    size, small = ((converted.folder / kind / "model.bin").stat().st_size for kind in ("float32", "int8"))
    assert small < 0.5 * size


def test_a_trace_of_another_model_is_one_line_and_no_file(frozen, tmp_path, capsys):
    trace = frozen.folder / "trace.jsonl"
    options = ["--path", "most-frequent", "--trace", trace]
    checkpoint = save(build_model(encoder_layers=4), tmp_path / "deep.pt", encoder_layers=4)
    check_refused([checkpoint, tmp_path / "plain.pt", *options], ["trace.jsonl:1", "expected 4"], tmp_path, capsys)
    checkpoint = save(build_model(), tmp_path / "large.pt", arch="switchable_bart_large")
    needles = ["trace.jsonl:1", "switchable_bart_base", "switchable_bart_large"]
    check_refused([checkpoint, tmp_path / "plain.pt", *options], needles, tmp_path, capsys)


def test_a_bad_checkpoint_or_place_is_one_line_and_no_file(frozen, tmp_path, capsys):
    whole = (frozen.folder / "model.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder").mkdir()
    plain, model, out = frozen.folder / "plain.pt", frozen.folder / "model.pt", tmp_path / "out.pt"
    for arguments, needles in (
        ([tmp_path / "cut.pt", out], ["cut.pt", "truncated"]),
        ([tmp_path / "none.pt", out], ["none.pt", "no such file"]),
        ([plain, out], ["plain.pt", "bart_base", "expected a switchable_bart"]),
        ([model, tmp_path / "none" / "out.pt"], ["cannot be written", "out.pt"]),
        ([model, tmp_path / "folder"], ["cannot be written", "folder"]),
    ):
        check_refused([*arguments, "--path", "dense"], needles, tmp_path, capsys)
