"""Paths that follow from a property are predicted by it; those that do not are not."""

import dataclasses
import gzip
import json
import random

import pytest

from sd_fairseq.commands.explain_paths import main
from sd_fairseq.decision.trace import TraceRecord, write_trace
from sd_fairseq.study.path_analysis import analyse, name_paths, share_by_bin

pytest.importorskip("sklearn")


def record(identity, length, strategy):
    sites = {"encoder_attention": "=1", "encoder_ffn": "=1", "decoder_attention": "1="}
    sites.update(decoder_cross_attention="1=", decoder_ffn="11")
    costs = dict(flops_generation=80, flops_generation_dense=100, flops_paper=70, flops_paper_dense=100)
    rest = dict(beam=4, target_tokens=5, decoder_steps=5, generation="", model="")
    kept = length if strategy == "keep" else length // 2
    return TraceRecord(
        id=identity, source_tokens=length, kept_source_tokens=kept, token_strategy=strategy, seconds=0.1, **sites,
        **costs, **rest,
    )  # fmt: skip


def build(rule, count=300):
    """Pairs of random length, domain and first word, and a trace whose paths ``rule`` decides."""
    choose = random.Random(5)
    pairs, records = [], []
    for place in range(count):
        pair = {"domain": choose.choice("ab"), "document": choose.choice(["The", "A"]) + " word"}
        length = choose.randrange(10, 200)
        pairs.append(pair)
        records.append(record(place, length, "uniform:50" if rule(pair, length, choose) else "keep"))
    choose.shuffle(records)
    return records, pairs


@pytest.mark.parametrize(
    "name,rule",
    [
        ("length", lambda pair, length, _: length > 90),
        ("domain", lambda pair, length, _: pair["domain"] == "a"),
        ("first word", lambda pair, length, _: pair["document"].startswith("The")),
    ],
)
def test_the_property_that_decides_predicts_and_the_others_do_not(name, rule):
    found = analyse(*build(rule))
    assert found["distinct_paths"] == 2
    assert found["guessed"][name] > 0.97 and found["guessed"]["all of these"] > 0.97
    for other in {"length", "domain", "first word"} - {name}:
        assert found["guessed"][other] < found["most_frequent"] + 0.1


def test_flops_are_told_by_source():
    records, pairs = build(lambda pair, length, _: True, 6)
    costs = {0: 50, 1: 70, 2: 90}
    records = [dataclasses.replace(one, flops_generation=costs.get(one.id, 80)) for one in records]
    named = [{**pair, "domain": "a" if place < 2 else "b"} for place, pair in enumerate(pairs)]
    assert analyse(records, named)["flops_by_domain"] == pytest.approx({"a": 0.6, "b": 0.825})
    assert analyse(records, [{"document": "word"}] * 6)["flops_by_domain"] == {}
    with pytest.raises(ValueError, match="is none of 3 pairs"):
        analyse(records, pairs[:3])


def test_paths_drawn_at_random_are_predicted_by_nothing():
    found = analyse(*build(lambda pair, length, choose: choose.random() < 0.3))
    assert all(share < found["most_frequent"] + 0.05 for share in found["guessed"].values())


def test_one_path_for_all_leaves_nothing_to_predict():
    found = analyse(*build(lambda *_: False))
    assert (found["distinct_paths"], found["most_frequent"], found["guessed"]) == (1, 1.0, {})


def test_shares_of_a_bin_add_up_and_the_most_frequent_path_is_the_first():
    records, _ = build(lambda pair, length, _: length > 150)
    paths = name_paths(records)
    assert {path.split()[0]: paths.count(path) for path in set(paths)}["P1"] == max(map(paths.count, set(paths)))
    labels, shares = share_by_bin([one.source_tokens for one in records], paths)
    assert len(labels) == 8
    for place in range(8):
        assert sum(values[place] for values in shares.values()) == pytest.approx(1.0)
    assert shares["P2 uniform:50"][0] == 0.0 and shares["P2 uniform:50"][-1] == 1.0


def write(folder, records, pairs):
    write_trace(str(folder / "t.jsonl"), records)
    with gzip.open(str(folder / "p.jsonl.gz"), "wt", encoding="utf-8") as text:
        text.writelines(json.dumps(pair) + "\n" for pair in pairs)
    return [str(folder / "t.jsonl"), "--pairs", str(folder / "p.jsonl.gz")]


def test_the_command_writes_table_picture_and_json(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = write(tmp_path, *build(lambda pair, length, _: length > 90))
    outputs = ["--plot", str(tmp_path / "p.png"), "--output", str(tmp_path / "p.json")]
    assert main([*arguments, *outputs]) == 0
    assert "| length " in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text())["guessed"]["length"] > 0.97
    assert (tmp_path / "p.png").stat().st_size > 1000 and not list(tmp_path.glob("*.part"))


def test_a_trace_of_other_pairs_and_a_broken_file_are_one_line(tmp_path, capsys):
    records, pairs = build(lambda pair, length, _: length > 90)
    arguments = write(tmp_path, records, pairs[:-1])
    assert main(arguments) == 1
    assert capsys.readouterr().err == "sd_fairseq: error: example 299 of the trace is none of 299 pairs\n"
    (tmp_path / "p.jsonl.gz").write_bytes(b"no gzip")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "p.jsonl.gz: cannot be read" in error and error.count("\n") == 1
