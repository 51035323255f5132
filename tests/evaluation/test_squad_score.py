"""Laws of SQuAD's scores, and the published predictions' published figures."""

import gzip
import json
from pathlib import Path

import pytest

from sd_fairseq.errors import InputError
from sd_fairseq.evaluation.squad_data import Answer, Question, read_questions
from sd_fairseq.evaluation.squad_score import answer_f1, main, normalise_answer, score_answers, score_question

SQUAD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "squad"
needs_squad = pytest.mark.skipif(not SQUAD.is_dir(), reason="needs the shared SQuAD files beside the repository")


def ask(identity, *answers, impossible=None):
    context = " ".join(answers) or "nothing"
    given = tuple(Answer(text, context.index(text)) for text in answers)
    return Question(identity, "what?", context, given, impossible, f"here, id {identity}")


@needs_squad
@pytest.mark.parametrize(
    "data, system, exact, f1",
    [
        ("dev-v1.1", "v1.1.BERT", 86.21, 92.20),
        ("dev-v1.1", "v1.1.Match_LSTM_with_Ans_Ptr", 67.63, 76.76),
        ("dev-v1.1", "v1.1.Logistic_Regression_Baseline", 40.14, 50.98),
        ("dev-v2.0", "v2.0.BERT", 78.74, 81.78),
        ("dev-v2.0", "v2.0.BiDAF_Self_Attention_ELMo", 65.70, 67.88),
    ],
)
def test_published_predictions_get_their_published_scores(data, system, exact, f1, capsys):
    assert main([str(SQUAD / f"{data}.json.gz"), str(SQUAD / "predictions" / f"{system}.json.gz")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (round(figures["exact"], 2), round(figures["f1"], 2)) == (exact, f1)
    if data.endswith("2.0"):
        parts = [(figures[f"{kind}_total"], figures[f"{kind}_f1"]) for kind in ("HasAns", "NoAns")]
        assert [total for total, _ in parts] == [5928, 5945]
        assert sum(total * score for total, score in parts) / 11873 == pytest.approx(figures["f1"])
    else:
        assert not any(key.startswith(("HasAns", "NoAns")) for key in figures)


def test_normalisation_leaves_case_articles_punctuation_and_spaces_out():
    assert normalise_answer("  The\tCat's  (an)  Éclair-a! ") == "cats éclaira"
    assert normalise_answer("theory of a nation") == "theory of nation"


def test_the_best_of_several_answers_counts():
    question = ask("1", "the red house", "red")
    assert score_question(question, "Red!", False) == (1, 1)
    assert score_question(question, "red house", False) == (1, 1)
    exact, f1 = score_question(question, "red car park", False)
    assert (exact, f1) == (0, pytest.approx(0.5))  # 1 of 3 words against 1 of 1


def test_f1_is_the_harmonic_mean_over_words_with_their_counts():
    assert answer_f1("x x y", "x y y", False) == pytest.approx(2 / 3)
    assert answer_f1("x", "y", False) == 0


def test_no_answer_is_right_for_a_question_without_one_and_wrong_for_the_others():
    questions = [ask("1", impossible=True), ask("2", "sea", impossible=False)]
    figures = score_answers(questions, {"1": "", "2": ""})
    assert figures["NoAns_exact"] == figures["NoAns_f1"] == 100 and figures["HasAns_f1"] == 0
    figures = score_answers(questions, {"1": "sea", "2": "the sea"})
    assert figures["NoAns_f1"] == 0 and figures["HasAns_exact"] == 100 and figures["exact"] == 50


def test_a_question_without_a_prediction_is_wrong_and_counted():
    figures = score_answers([ask("1", "sea"), ask("2", "sky")], {"1": "sea"})
    assert figures["exact"] == 50 and figures["missing"] == 1 and figures["total"] == 2
    silent = score_answers([ask("1", impossible=True)], {})
    assert silent["exact"] == 0  # as the official script warns: a missing answer is none at all


def test_the_best_threshold_is_that_of_an_exhaustive_search():
    import random

    chance = random.Random(3)
    questions, answers, silence = [], {}, {}
    for index in range(40):
        has = chance.random() < 0.6
        identity = str(index)
        questions.append(ask(identity, "sea", impossible=False) if has else ask(identity, impossible=True))
        answers[identity] = chance.choice(["sea", "the sea", "deep sea", "deep blue sea", "sky"])
        silence[identity] = round(0.1 + 0.5 * chance.random() + (0 if has else 0.3), 1)  # with ties
    found = score_answers(questions, answers, silence)
    for name in ("exact", "f1"):
        tried = [score_answers(questions, answers, silence, cut / 20 - 0.025)[name] for cut in range(22)]
        assert found[f"best_{name}"] == pytest.approx(max(tried))
        reached = score_answers(questions, answers, silence, found[f"best_{name}_thresh"] + 1e-9)
        assert reached[name] == pytest.approx(max(tried))
        assert found[f"best_{name}"] > max(found[name], tried[0])  # neither all answers nor none


def squad(**changes):
    """SQuAD 1.1 of one question, with changed fields; None takes a field out."""
    entry = {"id": "7", "question": "what?", "answers": [{"text": "sea", "answer_start": 4}]}
    paragraph = {"context": "the sea is deep", "qas": [entry]}
    for name, value in changes.items():
        place = paragraph if name in paragraph else entry
        place[name] = value
        if value is None:
            del place[name]
    return {"data": [{"title": "Seas", "paragraphs": [paragraph]}]}


AT = r"article 0 \(Seas\), paragraph 0"


@pytest.mark.parametrize(
    "content, fault",
    [
        (squad(context=None), AT + ": no 'context'"),
        (squad(qas=None), AT + ": no 'qas'"),
        (squad(id=None), AT + ", question 0: no 'id'"),
        (squad(question=" "), AT + ", question 0, id 7: 'question' is empty"),
        (squad(context=""), AT + ": 'context' is empty"),
        (squad(answers=[{"text": "sea", "answer_start": 5}]), "id 7, answer 0: 'sea' is not at character 5"),
        (squad(answers=[{"text": "sky", "answer_start": 4}]), "id 7, answer 0: 'sky' .* nor does it stand anywhere"),
        (squad(answers=[{"text": "sea"}]), "id 7, answer 0: no 'answer_start'"),
        (squad(answers=[]), "id 7: no answer"),
        (squad(is_impossible=True), "id 7: 'is_impossible' is true, yet there is an answer"),
        ({"data": squad()["data"] * 2}, "article 1 .*id 7: the id was given before, at .*article 0"),
        ({"data": []}, "holds no questions"),
        ([], "found a JSON list"),
        ('{"data": ', "not valid JSON"),
    ],
)
def test_bad_files_end_in_one_line_that_names_the_place(tmp_path, content, fault):
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=f"^{path}: .*{fault}|^{path}: {fault}") as caught:
        read_questions(str(path))
    assert "\n" not in str(caught.value)


def test_json_lines_name_their_line(tmp_path):
    path = tmp_path / "in.jsonl"
    good = {"id": "a", "question": "q?", "context": "c"}
    path.write_text(json.dumps(good) + "\n\n" + json.dumps({**good, "id": "b", "question": ""}) + "\n")
    with pytest.raises(InputError, match=r"in.jsonl:3, id b: 'question' is empty"):
        read_questions(str(path), needs_answers=False)
    path.write_text(json.dumps(good) + "\n")
    assert [(one.id, one.context) for one in read_questions(str(path), needs_answers=False)] == [("a", "c")]


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    data, predictions = tmp_path / "data.json.gz", tmp_path / "predictions.json"
    with gzip.open(str(data), "wt", encoding="utf-8") as text:
        json.dump(squad(), text)
    faults = {'{"7": 1}': "'7' has 1", '{"8": "x"}': "answers none of the questions", "[": "not valid JSON"}
    for content, fault in faults.items():
        predictions.write_text(content)
        assert main([str(data), str(predictions)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and fault in error
    predictions.write_text('{"7": "The sea"}')
    assert main([str(data), str(predictions)]) == 0
    assert json.loads(capsys.readouterr().out)["exact"] == 100
