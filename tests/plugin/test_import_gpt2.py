"""GPT-2's weights out of Hugging Face's folders and of fairseq's own language models."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from factories import build_dictionary, pad_rows

from sd_fairseq.plugin.convert.import_model import build, import_model, read_source
from sd_fairseq.plugin.convert.weights.safetensors import read_safetensors
from sd_fairseq.plugin.convert.weights.transformer_lm import options_of
from sd_fairseq.plugin.guards.errors import InputError

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "gpt2"  # by tests/reference/make_gpt2.py
SINES = {"decoder_learned_pos": False, "share_decoder_input_output_embed": False, "activation_fn": "relu"}
LEARNED = {"decoder_learned_pos": True, "share_decoder_input_output_embed": True, "activation_fn": "gelu"}
UNSCALED = {**LEARNED, "no_scale_embedding": True, "activation_fn": "gelu_accurate"}


def folder_with(folder, weights=None, **changed):
    """A copy of the reference folder with other weights, in a .bin file, or another configuration."""
    shutil.copytree(str(REFERENCE / "plain"), str(folder))
    if weights is not None:
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changed}), encoding="utf-8")
    return folder


def test_weights_without_a_prefix_and_with_old_masks_are_read_alike(tmp_path):
    """As the published gpt2 has them."""
    found = read_safetensors(str(REFERENCE / "plain" / "model.safetensors"))
    published = {name[len("transformer.") :]: value for name, value in found.items()}
    published.update({"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.tensor(-1e4)})
    one, other = (
        build(read_source(str(place))) for place in (REFERENCE / "plain", folder_with(tmp_path / "a", published))
    )
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def refuse(source, output, text):
    with pytest.raises(InputError, match=text) as error:
        import_model(str(source), str(output))
    assert "\n" not in str(error.value) and not Path(output).exists()


@pytest.mark.parametrize(
    "changed,text",
    [
        ({"activation_function": "swish"}, "activation_function is 'swish', expected one of gelu_new"),
        ({"scale_attn_weights": False}, "scale_attn_weights is false"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
        ({"n_positions": 32}, "of shape"),
        ({"n_head": 3}, "no multiple of 3 heads"),
        ({"n_layer": 2}, "without a place"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_one_line(tmp_path, changed, text):
    refuse(folder_with(tmp_path / "source", **changed), tmp_path / "out", text)


def test_a_tokenizer_in_two_files_is_that_of_fairseqs_bpe(tmp_path):
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
    from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

    from sd_fairseq.plugin.text.tokenizer import SDTokenizer, SDTokenizerConfig

    folder = folder_with(tmp_path / "source")
    pieces = [*bytes_to_unicode().values(), "th", "the", "Ġthe", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n", encoding="utf-8")
    assert "tokenizer.json" in import_model(str(folder), str(tmp_path / "out"))[1]
    ours = SDTokenizer(SDTokenizerConfig(sd_tokenizer=str(tmp_path / "out" / "tokenizer.json")))
    files = {"gpt2_encoder_json": str(folder / "vocab.json"), "gpt2_vocab_bpe": str(folder / "merges.txt")}
    theirs = GPT2BPE(GPT2BPEConfig(**files))
    text = "the they, over the é"
    assert ours.encode(text) == theirs.encode(text) and ours.decode(ours.encode(text)) == text
    assert ours.encode("the<|endoftext|>").split() == [str(vocabulary["the"]), str(vocabulary["<|endoftext|>"])]


def language_model(folder, **options):
    """A tiny model of fairseq's with a checkpoint and a dictionary."""
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    arch, dictionary = "transformer_lm_gpt2_tiny", build_dictionary(40)
    sizes = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_attention_heads": 2, "decoder_layers": 2}
    args = Namespace(arch=arch, task="language_modeling", data="data-bin", tokens_per_sample=32, **sizes, **options)
    ARCH_CONFIG_REGISTRY[arch](args)
    model = ARCH_MODEL_REGISTRY[arch].build_model(
        args, Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    )
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3)
    folder.mkdir(exist_ok=True)
    dictionary.save(str(folder / "dict.txt"))
    history = [{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}]
    extra = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}}
    state = {"args": args, "model": model.state_dict(), "optimizer_history": history, "extra_state": extra}
    torch.save(state, folder / "checkpoint_best.pt")
    return model.eval(), dictionary


@torch.no_grad()
@pytest.mark.parametrize("options", [LEARNED, UNSCALED, SINES], ids=["learned", "unscaled", "sines"])
def test_logits_are_those_of_fairseqs_language_model(options, tmp_path):
    theirs, dictionary = language_model(tmp_path / "lm", **options)
    source = read_source(str(tmp_path / "lm" / "checkpoint_best.pt"))
    ours, end, pad = build(source), dictionary.eos(), dictionary.pad()
    assert source.dictionary == dictionary and source.options["positions"] == 32
    texts = [torch.randint(4, len(dictionary), (length,)) for length in (15, 9, 6)]
    texts = [torch.cat([torch.tensor([end]), text]) for text in texts]  # a language model reads it before a text
    prompts = [torch.cat([text[:-4], torch.tensor([end])]) for text in texts]
    previous = torch.stack([torch.cat([torch.tensor([end]), text[-4:]]) for text in texts])
    for side in ("left", "right"):
        logits = ours(pad_rows(prompts, pad, side, extra=1), None, previous)[0]
        for row, text in enumerate(texts):
            torch.testing.assert_close(logits[row], theirs(text.unsqueeze(0))[0][0, -5:], atol=1e-5, rtol=1e-5)


def test_the_imported_folder_has_fairseqs_dictionary(tmp_path):
    _, dictionary = language_model(tmp_path / "lm", **LEARNED)
    lines = import_model(str(tmp_path / "lm" / "checkpoint_best.pt"), str(tmp_path / "out"))
    assert "switchable_gpt2, 2 layers" in lines[0] and "dictionary of 44" in lines[0]
    assert (tmp_path / "out" / "dict.source.txt").read_text() == (tmp_path / "lm" / "dict.txt").read_text()


@pytest.mark.parametrize(
    "changed,text",
    [
        ({"no_decoder_final_norm": True}, "no_decoder_final_norm is True, which switchable_gpt2 does not do"),
        ({"activation_fn": "tanh"}, "activation_fn is 'tanh', expected one of gelu, gelu_accurate"),
        ({"decoder_output_dim": 8}, "decoder_output_dim is 8, expected 16"),
    ],
    ids=str,
)
def test_options_of_a_language_model_that_are_not_ours_are_one_line(changed, text):
    with pytest.raises(InputError, match=text):
        options_of({"decoder_embed_dim": 16, **changed})


def test_other_checkpoints_are_one_line(tmp_path):
    checkpoint = tmp_path / "lm" / "checkpoint_best.pt"
    language_model(tmp_path / "lm", **LEARNED)
    state = torch.load(checkpoint, weights_only=False)
    torch.save({**state, "args": Namespace(**{**vars(state["args"]), "arch": "bart_base"})}, checkpoint)
    refuse(checkpoint, tmp_path / "out", "holds a bart_base, expected one of fairseq's transformer_lm")
    (tmp_path / "lm" / "dict.txt").unlink()
    torch.save(state, checkpoint)
    refuse(checkpoint, tmp_path / "out", "no dict.txt in .*; put it beside the checkpoint")
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    refuse(checkpoint, tmp_path / "out", "checkpoint")
