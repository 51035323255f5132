"""Imported weights compute what Hugging Face's own code computes with them, and bad input is one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from factories import pad_rows

from sd_fairseq.plugin.convert.import_model import build, import_model, read_source
from sd_fairseq.plugin.convert.weights.safetensors import read_safetensors
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.text.identity_dictionary import IdentityDictionary, is_identity

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "t5"  # by tests/reference/make_t5.py
KINDS = ["v1_1", "v1_0"]
CLOSE = {"atol": 1e-4, "rtol": 0}
every_kind = pytest.mark.parametrize("kind", KINDS)


def load(kind):
    return build(read_source(str(REFERENCE / kind)))


def expected(kind):
    """Source and target ids, logits and encoder states; a target begins with fairseq's symbol in place of T5's."""
    found = read_safetensors(str(REFERENCE / kind / "expected.safetensors"))
    found["target"][:, 0] = 1
    return found


def folder_with(tmp_path, kind="v1_1", **changed):
    """A copy of a reference folder whose configuration is changed; None takes an entry away."""
    folder = tmp_path / "source"
    shutil.copytree(str(REFERENCE / kind), str(folder))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in {**config, **changed}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_hugging_faces_with_padding_on_either_side(kind, side):
    model, wanted = load(kind), expected(kind)
    source = pad_rows([row[row.ne(0)] for row in wanted["source"]], 0, side, extra=3)
    logits = model(source, None, wanted["target"])[0]
    for row, target in enumerate(wanted["target"]):
        real = target.ne(0)
        assert float(wanted["logits"][row, real].std()) > 0.2
        torch.testing.assert_close(logits[row, real], wanted["logits"][row, real], **CLOSE)


@torch.no_grad()
@every_kind
def test_encoder_states_are_hugging_faces(kind):
    model, wanted = load(kind), expected(kind)
    states = model.encoder(wanted["source"])["encoder_out"][0].transpose(0, 1)
    real = wanted["source"].ne(0)
    torch.testing.assert_close(states[real], wanted["encoder_states"][real], **CLOSE)


@torch.no_grad()
@every_kind
def test_a_search_step_by_step_has_the_same_logits(kind):
    model, wanted = load(kind), expected(kind)
    encoded, state = model.encoder(wanted["source"]), {}
    for step in range(wanted["target"].size(1)):
        logits, _ = model.decoder(wanted["target"][:, : step + 1], encoder_out=encoded, incremental_state=state)
        real = wanted["target"][:, : step + 1].ne(0).all(dim=1)
        torch.testing.assert_close(logits[real, -1], wanted["logits"][real, step], **CLOSE)


@torch.no_grad()
def test_a_bin_file_and_weights_in_several_files_are_read_alike(tmp_path):
    weights = read_safetensors(str(REFERENCE / "v1_1" / "model.safetensors"))
    whole, parts = folder_with(tmp_path / "a"), folder_with(tmp_path / "b")
    for folder in (whole, parts):
        (folder / "model.safetensors").unlink()
    torch.save(weights, whole / "pytorch_model.bin")
    names = sorted(weights)
    for number, half in enumerate((names[::2], names[1::2])):
        torch.save({name: weights[name] for name in half}, parts / f"part{number}.bin")
    table = {name: f"part{place % 2}.bin" for place, name in enumerate(names)}
    (parts / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}), encoding="utf-8")
    first = load("v1_1").state_dict()
    for folder in (whole, parts):
        second = build(read_source(str(folder))).state_dict()
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_configuration_of_transformers_5_says_tied_whatever_the_model_is(tmp_path):
    folder = folder_with(tmp_path, tie_word_embeddings=True, scale_decoder_outputs=False)
    assert read_source(str(folder)).options["share_decoder_input_output_embed"] is False


def test_what_is_written_loads_and_its_dictionary_has_the_models_ids(tmp_path):
    lines = import_model(str(REFERENCE / "v1_1"), str(tmp_path / "out"))
    assert "2 + 3 layers" in lines[0] and "tokenizer.json" in lines[1]
    for name in ("dict.txt", "dict.source.txt", "dict.target.txt"):
        assert is_identity(str(tmp_path / "out" / name))
    dictionary = IdentityDictionary.load(str(tmp_path / "out" / "dict.txt"))
    assert (dictionary.pad(), dictionary.eos(), dictionary.unk(), dictionary.bos()) == (0, 1, 2, 1)
    assert len(dictionary) == 48 and all(dictionary.index(str(index)) == index for index in range(3, 48))
    assert dictionary.encode_line("7 </s> 9 nonsense", add_if_not_exist=False).tolist() == [7, 1, 9, 2, 1]
    assert dictionary.string(torch.tensor([7, 0, 47, 1])) == "7 <pad> 47"


def test_the_hub_answers_text_with_text(tmp_path):
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    from sd_fairseq.plugin.models.switchable_t5 import SwitchableT5Model

    out = str(tmp_path / "out")
    import_model(str(REFERENCE / "v1_1"), out)
    tokens = {"bpe": "sd_tokenizer", "sd_tokenizer": out + "/tokenizer.json"}
    hub = SwitchableT5Model.from_pretrained(out, "model.pt", out, **tokens)
    text = "w7 w8 w9 w10 w11 w12 w13"  # longer than the file's own truncation
    assert hub.encode(text).tolist() == [7, 8, 9, 10, 11, 12, 13, 1] and hub.decode(hub.encode(text)) == text
    answers = hub.translate([text, "w3 unheard </s>"], beam=2, max_len_b=5)
    assert len(answers) == 2 and all(word.startswith("w") for answer in answers for word in answer.split())


def test_a_stock_dictionary_is_told_apart(tmp_path):
    (tmp_path / "dict.txt").write_text("the 10\n</s>x 3\n7 1\n", encoding="utf-8")
    assert not is_identity(str(tmp_path / "dict.txt")) and not is_identity(str(tmp_path / "none.txt"))


def refuse(folder, output, text):
    with pytest.raises(InputError, match=text) as error:
        import_model(str(folder), str(output))
    assert "\n" not in str(error.value)
    assert not (Path(output) / "model.pt").exists()


@pytest.mark.parametrize(
    "changed,text",
    [
        ({"model_type": "bart"}, "model_type is 'bart', expected one of gpt2, llama, mt5, t5"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'"),
        ({"d_kv": None}, "has no d_kv"),
        ({"d_kv": 5}, "of shape"),
        ({"num_layers": 3}, "weights missing"),
        ({"num_decoder_layers": 2}, "without a place"),
        ({"eos_token_id": 2}, r"the ids \(0, 2\), expected \(0, 1\)"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_one_line(tmp_path, changed, text):
    refuse(folder_with(tmp_path, **changed), tmp_path / "out", text)


def test_unreadable_weights_are_one_line(tmp_path):
    folder = folder_with(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    for cut in (0, 5, 300, len(whole) - 10):
        (folder / "model.safetensors").write_bytes(whole[:cut])
        refuse(folder, tmp_path / "out", "truncated or not a safetensors file")
    (folder / "model.safetensors").unlink()
    refuse(folder, tmp_path / "out", "no weights, expected model.safetensors or pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(b"nonsense")
    refuse(folder, tmp_path / "out", "truncated or not a file of weights")


def test_other_places_are_one_line(tmp_path):
    refuse(tmp_path / "none", tmp_path / "out", "no such folder")
    refuse(tmp_path, tmp_path / "out", "neither config.json nor encoder.onnx and decoder.onnx")
    folder = folder_with(tmp_path)
    refuse(folder, folder, "expected another folder")
