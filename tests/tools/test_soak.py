"""The soak says what is wrong: a line without an answer, another answer, growing memory, a trace with holes."""

from types import SimpleNamespace

import pytest
import soak

COUNT = 50


def lines(ids, other=None):
    """What a generating command prints."""
    return "".join(f"S-{n}\ta\nD-{n}\t-0.1\t{'else' if n == other else 'same'}\n" for n in ids)


@pytest.mark.parametrize(
    "kind, words",
    [
        ("nothing", None),
        ("a line missing", "1 lines are not answered"),
        ("another answer", "line 7 is answered in another way"),
        ("growing memory", "memory grows from 100 to 110 MiB"),
        ("a hole in the trace", "does not have every line once"),
    ],
)
def test_every_fault_is_told(monkeypatch, tmp_path, kind, words):
    every = list(range(COUNT))
    answered = [n for n in every if kind != "a line missing" or n != 7]
    memory = [80.0] + [100.0] * (COUNT - 11) + [110.0 if kind == "growing memory" else 102.0] * 10
    traced = [n for n in every if kind != "a hole in the trace" or n != 7]
    other = 7 if kind == "another answer" else None
    monkeypatch.setattr(soak, "answer", lambda folder, checkpoint: (lines(answered, other), memory))
    monkeypatch.setattr(soak, "fairseq", lambda *arguments: lines(every))
    monkeypatch.setattr(soak, "read_trace", lambda path: [SimpleNamespace(id=n) for n in traced])
    faults = soak.check_answers(tmp_path, tmp_path / "c.pt", ["a"] * COUNT)
    assert faults == [] if words is None else words in faults[0]
