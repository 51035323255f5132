"""Tokens know their characters: round trips on texts of many scripts and on every question of the shared SQuAD."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig

from sd_fairseq.evaluation.squad_data import read_questions
from sd_fairseq.evaluation.squad_score import normalise_answer
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.squad.offsets import load_tokeniser

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SQUAD, GPT2 = SHARED / "squad", SHARED / "gpt2_bpe"
KINDS = [
    "sentencepiece",
    pytest.param("gpt2", marks=pytest.mark.skipif(not GPT2.is_dir(), reason="needs GPT-2's files")),
]
TEXTS = [
    "The Wawel in Kraków, 東京 and Αθήνα: 3½ °C — “naïve” ﬁnance™ …",
    "  two  spaces, a tab\there,\n\na line end and a no-break\u00a0space \u3000",
    "e\u0301 beside é; 👩\u200d🚀 flies; الكتاب; ①②③; x² + ½",
    "½",
    "x",
    "\u200bhidden\u200b signs\u200b",
    "한국어 텍스트 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> folder with the tokeniser's files."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    texts = [text for text in TEXTS for _ in range(3)]
    if SQUAD.is_dir():
        texts += [one.context for one in read_questions(str(SQUAD / "dev-v1.1.json.gz"))[:6000:30]]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "sentencepiece"),
        vocab_size=1000 if SQUAD.is_dir() else 130,
        hard_vocab_limit=False,
        character_coverage=0.999,  # some characters are unknown
        num_threads=1,
        minloglevel=2,
    )
    return {"sentencepiece": folder, "gpt2": GPT2}


@pytest.fixture(scope="module")
def tokenisers(folders):
    return {kind: load_tokeniser(str(folder)) for kind, folder in folders.items() if folder.is_dir()}


def fairseqs_pieces(kind, folder, text):
    """What fairseq's own encoder makes of a text."""
    if kind == "gpt2":
        names = {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"}
        bpe = GPT2BPE(SimpleNamespace(**{key: str(folder / name) for key, name in names.items()}))
    else:
        bpe = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(folder / "sentencepiece.model")))
    return tuple(bpe.encode(text).split(" "))


def check_round_trip(text, tokens):
    """Every character is held by some token, in order; no token is empty."""
    assert len(tokens.pieces) == len(tokens.begins) == len(tokens.ends)
    assert tokens.begins[0] == 0 and tokens.ends[-1] == len(text)
    rebuilt = ""
    for begin, end in zip(tokens.begins, tokens.ends):
        assert begin < end and begin <= len(rebuilt) <= end, (text, begin, end)
        rebuilt += text[len(rebuilt) : end]
    assert rebuilt == text and list(tokens.begins) == sorted(tokens.begins)


def check_cover(text, tokens, begin, end):
    """The tokens that cover some characters hold them, and fewer do not."""
    first, last = tokens.cover(begin, end)
    assert tokens.begins[first] <= begin < tokens.ends[first]
    assert tokens.begins[last] < end <= tokens.ends[last]
    assert first == 0 or tokens.ends[first - 1] <= begin
    assert last == len(tokens.pieces) - 1 or tokens.begins[last + 1] >= end
    assert text[begin:end] in text[tokens.begins[first] : tokens.ends[last]]
    return text[tokens.begins[first] : tokens.ends[last]].strip()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_fairseqs_and_hold_every_character_of_any_script(folders, tokenisers, kind, text):
    tokens = tokenisers[kind].tokenise(text)
    assert tokens.pieces == fairseqs_pieces(kind, folders[kind], text)
    check_round_trip(text, tokens)
    for begin in range(len(text)):
        for end in range(begin + 1, len(text) + 1):
            check_cover(text, tokens, begin, end)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_characters_of_gpt2s_tokens_are_those_of_their_bytes(tokenisers, kind, text):
    """Derived a second way: decoding the bytes up to each token's begin and end."""
    tokeniser = tokenisers[kind]
    tokens = tokeniser.tokenise(text)
    encoder = tokeniser.encoder
    done = b""
    for piece, begin, end in zip(tokens.pieces, tokens.begins, tokens.ends):
        assert begin == len(done.decode("utf-8", "ignore"))
        done += bytes(encoder.byte_decoder[symbol] for symbol in encoder.decoder[int(piece)])
        assert end == len(done.decode("utf-8", "replace"))
    assert done.decode("utf-8") == text


def test_unnormalised_characters_of_sentencepiece_are_those_of_the_text(tokenisers):
    text = "ﬁnance at Kraków ½ a"
    tokens = tokenisers["sentencepiece"].tokenise(text)
    for word in ("Kraków", "ﬁnance", "½"):
        begin = text.index(word)
        assert check_cover(text, tokens, begin, begin + len(word)) == word


@pytest.mark.skipif(not SQUAD.is_dir(), reason="needs the shared SQuAD files")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["dev-v1.1", "dev-v2.0", "train-subset-v1.1"])
def test_every_answer_of_squad_is_held_by_the_tokens_that_cover_it(tokenisers, kind, name):
    """All questions of the 1.1 development set; of the other files one in ten, or all with SD_FAIRSEQ_ALL_SQUAD=1."""
    questions = read_questions(str(SQUAD / f"{name}.json.gz"))
    if name != "dev-v1.1" and os.environ.get("SD_FAIRSEQ_ALL_SQUAD") != "1":
        questions = questions[::10]
    tokens, answers, same = {}, 0, 0
    for question in questions:
        if question.context not in tokens:
            tokens[question.context] = tokenisers[kind].tokenise(question.context)
            check_round_trip(question.context, tokens[question.context])
        check_round_trip(question.text, tokenisers[kind].tokenise(question.text))
        for one in set(question.answers):
            covered = check_cover(question.context, tokens[question.context], one.start, one.start + len(one.text))
            answers += 1
            same += normalise_answer(covered) == normalise_answer(one.text)
    # Offsets in the files are first occurrences, some inside longer words; a tokeniser of whole words would still do.
    assert answers >= 0.5 * len(questions) and same / answers > 0.97, (answers, same)


def test_a_folder_without_a_tokeniser_and_a_foreign_model_are_refused(tmp_path):
    with pytest.raises(InputError, match="encoder.json: no such file, and no sentencepiece.model"):
        load_tokeniser(str(tmp_path))
    (tmp_path / "sentencepiece.model").write_text("no model")
    with pytest.raises(InputError, match="sentencepiece.model: no SentencePiece model"):
        load_tokeniser(str(tmp_path))
