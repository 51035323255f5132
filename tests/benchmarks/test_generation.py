"""The benchmark of generation: same weights or nothing, peers that fail left out, all rows with both times."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fairseq_candidates
import generation
import pytest
import torch
import turns
import weights

BENCHMARKS = Path(turns.__file__).resolve().parent

REQUIRED = {"case", "ours_s", "peer", "peer_s", "ratio", "spread", "rounds", "versions", "threads", "flops_ratio"}
REQUIRED |= {"batch", "source", "target", "beam", "size"}
BROKEN = {
    "ctranslate2": "import os, sys\nprint('it crashed', file=sys.stderr, flush=True)\nos._exit(3)\n",
    "transformers": "raise ImportError('it cannot be imported\\nbeside that')\n",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of the command, with peers that are installed and broken; its rows, messages and process group."""
    folder = tmp_path_factory.mktemp("generation")
    for name, text in BROKEN.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    sizes = ["--size", "tiny", "--source-lengths", "16,20", "--target-length", "6", "--beam", "2", "--threads", "1"]
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / "generation.py"), *sizes]
    path = os.pathsep.join([str(folder), str(BENCHMARKS.parent)])
    process = subprocess.Popen(
        [*command, "--rounds", "2", "--precisions", "fp32", "--output", str(folder / "rows.json")],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        cwd=str(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        start_new_session=True,
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return json.loads((folder / "rows.json").read_text(encoding="utf-8")), errors, process.pid, folder


def test_every_size_has_its_rows_with_both_times_and_their_ratio(finished):
    rows = finished[0]
    cases = ["paper-rates-fp32-vs-ours-dense", "dense-fp32-vs-fairseq", "paper-rates-fp32-vs-fairseq-dense"]
    assert [(row["case"], row["source"]) for row in rows] == [(case, size) for size in (16, 20) for case in cases]
    for row in rows:
        assert REQUIRED - {"flops_ratio"} <= set(row)
        assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"], rel=0.05)
        assert row["spread"][0] <= row["ratio"] <= row["spread"][1] and row["rounds"] == 2
        assert row["device"] == "cpu" and "NVIDIA" not in row["versions"]["processor"]  # named by what was timed
        assert ("flops_ratio" in row) == row["case"].startswith("paper-rates")
        if "ours_memory_gb" in row:
            assert min(row["ours_memory_gb"], row["peer_memory_gb"]) > 0.05


def test_ours_finds_the_tokens_of_fairseq(finished):
    found = [row["same_tokens"] for row in finished[0] if row["case"] == "dense-fp32-vs-fairseq"]
    assert found == [1.0, 1.0]


def test_the_table_has_both_numbers_of_time_and_memory(finished):
    table = pytest.importorskip("table")
    for row in finished[0]:
        line = table.table([row]).splitlines()[2]
        assert f"{row['ours_s']:.4g} s " in line and f"{row['peer']} {row['peer_s']:.4g} s " in line
        if "ours_memory_gb" in row:
            assert f"ours {row['ours_memory_gb']:.2f}, peer {row['peer_memory_gb']:.2f} " in line


def test_a_broken_peer_is_one_line_once(finished):
    said = [line for line in finished[1].splitlines() if "left out" in line or "Traceback" in line]
    assert said == [
        "transformers fp32: left out: ImportError: it cannot be imported",
        "ctranslate2 fp32: left out: its process ended with status 3: it crashed",
    ]


def test_nothing_is_left_behind(finished):
    with pytest.raises(ProcessLookupError):
        os.killpg(finished[2], signal.SIGTERM)
    assert [path.name for path in finished[3].rglob("*.json")] == ["rows.json"]
    assert not list(finished[3].rglob("model.pt"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The weights' file, its checksums, and a request for a candidate that reads it."""
    path = str(tmp_path_factory.mktemp("weights") / "model.pt")
    request = {"size": "tiny", "weights": path, "threads": 1, "device": "cpu"}
    return request, fairseq_candidates.Weights(request).facts["checksums"]


@pytest.mark.parametrize(
    "device, message", [("gpu", "invalid choice: 'gpu'"), ("cuda", "--device cuda: torch finds no GPU")]
)
def test_a_device_that_is_not_there_is_one_line_before_anything_is_built(device, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["generation.py", "--device", device])
    with pytest.raises(SystemExit) as caught:
        generation.main()
    assert caught.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_what_needs_a_cpu_is_left_out_on_a_gpu(monkeypatch):
    monkeypatch.setattr(generation.importlib.util, "find_spec", lambda name: name)
    bench = generation.Bench.__new__(generation.Bench)
    bench.peer_names = ["transformers", "ctranslate2"]
    wanted = {}
    for device in ("cpu", "cuda"):
        bench.args = argparse.Namespace(device=device)
        wanted[device] = [name for name in bench.peer_names if bench.is_wanted(name)]
    assert wanted == {"cpu": ["transformers", "ctranslate2"], "cuda": ["transformers"]}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_all_candidates_hold_the_weights_of_the_file(written, precision):
    request, checksums = written
    for build, more in ((fairseq_candidates.Fairseq, {}), (fairseq_candidates.Ours, {"rates": generation.DENSE})):
        facts = build({**request, "precision": precision, **more}).facts
        assert facts["kind"] == precision
        generation.check_weights("one", facts, checksums)


def test_one_other_value_in_the_weights_is_refused_in_one_line(written, tmp_path):
    request, checksums = written
    checkpoint = torch.load(request["weights"], weights_only=False)
    checkpoint["model"]["decoder.layers.1.fc2.bias"][3] += 0.01
    torch.save(checkpoint, str(tmp_path / "model.pt"))
    other = {**request, "weights": str(tmp_path / "model.pt")}
    for precision in ("fp32", "bf16"):
        facts = fairseq_candidates.Fairseq({**other, "precision": precision}).facts
        with pytest.raises(SystemExit, match="^fairseq has other weights .*: nothing is compared$"):
            generation.check_weights("fairseq", facts, checksums)


def test_transformers_holds_the_weights_of_the_file(written):
    pytest.importorskip("transformers")
    import peers

    request, checksums = written
    candidate = peers.Transformers({**request, "precision": "fp32"})
    generation.check_weights("transformers", candidate.facts, checksums)
    candidate.model.model.encoder.layers[0].fc1.weight.data[0, 0] += 0.01
    with pytest.raises(SystemExit):
        facts = {"checksum": peers.transformers_checksum(candidate.model, weights.read(request["weights"]))}
        generation.check_weights("transformers", {**facts, "kind": "fp32"}, checksums)


def test_fewer_tokens_than_were_to_be_generated_are_an_error():
    import peers

    with pytest.raises(ValueError, match="5 tokens were generated, not 6"):
        peers.expect_length(5, 6)
