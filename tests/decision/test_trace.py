"""The decision trace: a round trip, and malformed files refused by file, line and reason."""

import json

import pytest
from traces import make_record

from sd_fairseq.decision.trace import from_json_line, read_trace, to_json_line, write_trace


def test_a_record_survives_the_round_trip():
    record = make_record(3)
    assert from_json_line(to_json_line(record)) == record


def test_a_trace_survives_the_round_trip(tmp_path):
    records = [make_record(index) for index in range(5)]
    write_trace(str(tmp_path / "trace.jsonl"), records)
    assert read_trace(str(tmp_path / "trace.jsonl")) == records
    assert [path.name for path in tmp_path.iterdir()] == ["trace.jsonl"]


def test_equal_decisions_are_one_path_whatever_the_lengths():
    assert make_record(1, source_tokens=50).path == make_record(2, source_tokens=90).path
    assert make_record(1).path != make_record(1, encoder_ffn="=110").path
    assert make_record(1).path != make_record(1, token_strategy="last:30").path


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda line: line[:-5], "not valid JSON"),
        (lambda line: "[1, 2]", "list"),
        (lambda line: json.dumps({**json.loads(line), "beam": "four"}), "'beam'"),
        (lambda line: json.dumps({k: v for k, v in json.loads(line).items() if k != "seconds"}), "seconds"),
        (lambda line: json.dumps({**json.loads(line), "colour": 1}), "colour"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, change, reason):
    path = tmp_path / "trace.jsonl"
    line = to_json_line(make_record(0))
    path.write_text(line + "\n" + change(line) + "\n")
    with pytest.raises(ValueError, match=reason) as caught:
        read_trace(str(path))
    assert f"{path}:2:" in str(caught.value)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"source_tokens": 0, "kept_source_tokens": 0}, "'source_tokens' is 0"),
        ({"kept_source_tokens": 61}, "keeps 61 of 60"),
        ({"flops_paper_dense": 0}, "'flops_paper_dense' is 0"),
        ({"seconds": float("nan")}, "'seconds' is nan"),
        ({"seconds": -1.0}, "'seconds' is -1.0"),
        ({"encoder_ffn": "=1x1"}, "'encoder_ffn' is '=1x1'"),
        ({"decoder_ffn": "111"}, "decoder's sites differ"),
        ({"token_strategy": "first:30"}, "'token_strategy' is 'first:30'"),
        ({"token_strategy": "last:0"}, "'token_strategy' is 'last:0'"),
        ({"layer_tokens": "44,44,9"}, "'layer_tokens' is '44,44,9', expected a count of 0..44 for every layer"),
        ({"layer_tokens": "44,44,45,9"}, "'layer_tokens' is '44,44,45,9'"),
        ({"layer_tokens": "44,44,-1,9"}, "'layer_tokens' is '44,44,-1,9'"),
        ({"rule": 3}, "'rule' is 3"),
    ],
)
def test_a_value_that_no_generation_has_is_refused(tmp_path, change, reason):
    path = tmp_path / "trace.jsonl"
    write_trace(str(path), [make_record(0), make_record(1, **change)])
    with pytest.raises(ValueError, match=reason) as caught:
        read_trace(str(path))
    assert f"{path}:2:" in str(caught.value)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(to_json_line(make_record(0)).encode() + b"\n\xff\xfe\n")
    with pytest.raises(ValueError, match="trace.jsonl:2:.*UTF-8"):
        read_trace(str(path))


def test_relative_flops_are_of_the_same_example():
    record = make_record(0, flops_generation=600, flops_generation_dense=800, flops_paper=1, flops_paper_dense=4)
    assert (record.relative_flops_generation, record.relative_flops_paper) == (0.75, 0.25)


def test_an_empty_trace_is_refused(tmp_path):
    (tmp_path / "trace.jsonl").write_text("")
    with pytest.raises(ValueError, match="no records"):
        read_trace(str(tmp_path / "trace.jsonl"))


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_trace(str(tmp_path / "trace.jsonl"), [make_record(0), make_record(1, generation=b"bytes")])
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_former_trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    write_trace(str(path), [make_record(0)])
    with pytest.raises(TypeError):
        write_trace(str(path), [make_record(1, generation=b"bytes")])
    assert read_trace(str(path)) == [make_record(0)] and [one.name for one in tmp_path.iterdir()] == ["trace.jsonl"]


def test_a_trace_of_before_there_were_rules_is_read_as_one_without():
    fields = json.loads(to_json_line(make_record(3)))
    del fields["rule"], fields["layer_tokens"]
    assert from_json_line(json.dumps(fields)) == make_record(3)


def test_shares_of_a_rules_layers_are_of_all_hypotheses():
    record = make_record(1, decoder_steps=11, beam=4, rule="hsd", layer_tokens="44,44,11,0")
    assert record.layer_shares == [1.0, 1.0, 0.25, 0.0]
    assert make_record(1).layer_shares is None
