"""A fixed path as a folder of Hugging Face's: import(export(x)) is x, and Hugging Face's own code runs the path."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from factories import PROMPT_VARIANTS, T5_VARIANTS, build_model, generate, pad_rows

from sd_fairseq.commands.export import main
from sd_fairseq.decision.decider import PathRequest
from sd_fairseq.plugin.convert.import_model import build, read_source
from sd_fairseq.plugin.models.fixed_path import parse_path, path_decisions
from sd_fairseq.plugin.text.identity_dictionary import EOS, PAD, UNK, IdentityDictionary

ADDED = {**PROMPT_VARIANTS["GPT-2"], "added_symbols": 1}
VARIANTS = {
    "T5 v1.1": (T5_VARIANTS["T5 v1.1"], {PAD: 0, EOS: 1, UNK: 2}),
    "T5 1.0": (T5_VARIANTS["T5 1.0"], {PAD: 0, EOS: 1, UNK: 2}),
    "LLaMA": (PROMPT_VARIANTS["LLaMA"], {EOS: 2, PAD: 3, UNK: 0}),
    "LLaMA, tied, padding added": ({**PROMPT_VARIANTS["LLaMA, tied"], "added_symbols": 1}, {EOS: 2, PAD: 48, UNK: 0}),
    "GPT-2": (ADDED, {EOS: 2, PAD: 48}),
    "GPT-2, a transformer_lm's": ({**ADDED, "embed_scale": 3.0, "feed_forward": "gelu"}, {EOS: 2, PAD: 48}),
}
ENCODER = "encoder_attention=110,encoder_ffn=101"  # the second layer takes the third's feed-forward
PATHS = {
    "T5": ENCODER + ",decoder_attention=101,decoder_cross_attention=101,decoder_ffn=001,token_strategy=keep",
    "other": ENCODER + ",token_strategy=keep",
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


class Case:
    """A model of a variant, its checkpoint with a dictionary, and prompts with answers."""

    def __init__(self, variant, folder):
        options, parts = VARIANTS[variant]
        self.dictionary, self.folder = (
            IdentityDictionary.of_size(max(48, *(n + 1 for n in parts.values())), parts),
            folder,
        )
        self.model, self.is_t5 = build_model(dictionary=self.dictionary, **options), variant.startswith("T5")
        more = {"task": "switchable_translation", "source_lang": "source", "target_lang": "target", "data": "none"}
        history = [{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}]
        extra = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}}
        state = {"args": Namespace(**{**vars(self.model.args), **more}), "model": self.model.state_dict()}
        torch.save({**state, "optimizer_history": history, "extra_state": extra}, folder / "model.pt")
        self.dictionary.save(str(folder / "dict.txt"))
        self.prompts = [torch.randint(4, 48, (length,)) for length in (11, 6, 9)]
        self.answers = torch.randint(4, 48, (3, 5))

    def export(self, path):
        return main(
            [str(self.folder / "model.pt"), str(self.folder / "out"), "--format", "huggingface", "--path", path]
        )

    def logits(self, model, path=PathRequest()):
        end = torch.tensor([self.dictionary.eos()])
        sources = pad_rows([torch.cat([prompt, end]) for prompt in self.prompts], self.dictionary.pad())
        previous = torch.cat([end.expand(3, 1), self.answers[:, :-1]], dim=1)
        return model(sources, None, previous, path=path)[0]

    def along(self, text, count=3):
        return PathRequest(decisions=path_decisions(parse_path(text, self.model.space), self.model.space, count))


def in_notation(case, text):
    """Writes '=' where the model has no switch."""
    found = []
    for part in text.split(","):
        site, kept = part.split("=")
        if site != "token_strategy":
            switchable = {layer for _, layer in case.model.space.switch_indices(site)}
            kept = "".join(mark if layer in switchable else "=" for layer, mark in enumerate(kept))
        found.append(f"{site}={kept}")
    return ",".join(found)


@pytest.fixture
def case(variant, tmp_path):
    return Case(variant, tmp_path)


@torch.no_grad()
@every_variant
def test_import_of_the_dense_export_is_the_model(case):
    assert case.export("dense") == 0
    source = read_source(str(case.folder / "out"))
    assert source.dictionary == case.dictionary
    again = build(source).state_dict()
    own = {name: value for name, value in case.model.state_dict().items() if "policy" not in name}
    if getattr(case.model.args, "embed_scale", 1.0) != 1.0:  # Hugging Face's scale nothing
        own["decoder.output_projection.weight"] = own["decoder.embed_tokens.weight"]
        own["decoder.embed_tokens.weight"] = 3.0 * own["decoder.embed_tokens.weight"]
    assert own.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in own.items())


@torch.no_grad()
@every_variant
def test_an_exported_path_computes_what_the_model_computes_along_it(case, capsys):
    path = in_notation(case, PATHS["T5" if case.is_t5 else "other"])
    assert case.export(path) == 0
    output = capsys.readouterr().out
    assert ("3 + 3 layers became 2 + 2" if case.is_t5 else "3 layers became 2") in output, output
    again = build(read_source(str(case.folder / "out")))
    expected = case.logits(case.model, case.along(path))
    assert float((expected - case.logits(case.model)).abs().max()) > 0.01
    torch.testing.assert_close(case.logits(again), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["T5 v1.1", "GPT-2"])
def test_a_sub_layer_that_is_skipped_alone_stays_and_is_counted(case, capsys):
    path = in_notation(case, "encoder_attention=111,encoder_ffn=101")
    assert case.export(path) == 0
    assert "1 skipped sub-layers stay, with zero output projections" in capsys.readouterr().out
    again = build(read_source(str(case.folder / "out")))
    torch.testing.assert_close(case.logits(again), case.logits(case.model, case.along(path)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["T5 v1.1", "GPT-2"])
def test_what_cannot_be_expressed_is_one_line(case, capsys):
    def refuse(text, path="dense", form="huggingface"):
        assert main([str(case.folder / "model.pt"), str(case.folder / "out"), "--format", form, "--path", path]) == 1
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1 and not (case.folder / "out").exists()

    refuse("cannot drop source tokens (uniform:25)", "token_strategy=uniform:25")
    refuse("--format fairseq: a BART becomes fairseq's", form="fairseq")
    (case.folder / "dict.txt").write_text("<pad> 1\n</s> 1\n", encoding="utf-8")
    refuse("the dictionary beside it")
    (case.folder / "dict.txt").unlink()
    refuse("no dict.txt in ")
    (case.folder / "out").write_text("a file", encoding="utf-8")
    assert case.export("dense") == 1 and "expected a folder to write to" in capsys.readouterr().err


def hugging_face(folder):
    """Loads a folder with Hugging Face's code."""
    try:
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    except Exception as error:  # beside another package's torchaudio it ends in an error of its own
        pytest.skip(f"transformers cannot be imported: {error}")
    kind = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["model_type"]
    loader = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    return loader.from_pretrained(str(folder)).eval()


@torch.no_grad()
@every_variant
def test_hugging_faces_code_gives_the_logits_and_the_greedy_answer_of_the_path(case):
    path = in_notation(case, PATHS["T5" if case.is_t5 else "other"])
    assert case.export(path) == 0
    theirs, ours = hugging_face(case.folder / "out"), case.logits(case.model, case.along(path))
    end, rows = case.dictionary.eos(), theirs.config.vocab_size
    for row, (prompt, answer) in enumerate(zip(case.prompts, case.answers)):
        if case.is_t5:
            source = torch.cat([prompt, torch.tensor([end])]).unsqueeze(0)
            previous = torch.cat([torch.tensor([0]), answer[:-1]]).unsqueeze(0)
            logits = theirs(input_ids=source, decoder_input_ids=previous).logits[0]
        else:
            source = prompt.unsqueeze(0)
            logits = theirs(input_ids=torch.cat([prompt, answer]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(ours[row, :, :rows], logits, atol=1e-4, rtol=1e-5)
        request = {"src_tokens": torch.cat([prompt, torch.tensor([end])]).unsqueeze(0), "path": case.along(path, 1)}
        mine = generate([case.model], request, 1, max_len_b=6)[0][0]["tokens"].tolist()
        options = {"max_new_tokens": 6, "min_new_tokens": 1, "do_sample": False, "num_beams": 1}
        if case.dictionary.pad() < rows:  # fairseq never picks it
            options["suppress_tokens"] = [case.dictionary.pad()]
        found = theirs.generate(source, attention_mask=torch.ones_like(source), **options)[0].tolist()
        found = found[1:] if case.is_t5 else found[len(prompt) :]
        length = min(len(found), len(mine) - 1)
        assert length > 0 and found[:length] == mine[:length]
