"""The commands of examples/summarization: every option is one of fairseq's or ours, and the arithmetic holds."""

import argparse
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from dropin import stand_ins
from dropin.workers import build_data, run

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "summarization"
RECORDER = """#!/bin/sh
printf '%s\\n' "$0" "$CUDA_VISIBLE_DEVICES" "$@" >"$RECORD/$(basename "$0").$$"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("fairseq")
    return build_data(tmp_path_factory.getbasetemp() / "dropin-data")


@pytest.fixture()
def call(tmp_path, monkeypatch):
    """Runs a script with commands in place of fairseq's that note how they were called."""
    programs, record = tmp_path / "programs", tmp_path / "record"
    programs.mkdir()
    record.mkdir()
    for name in ("fairseq-train", "fairseq-generate", "sd-report"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(stat.S_IRWXU)
    checkpoint = tmp_path / "model.pt"
    torch.save({"model": {}, "args": argparse.Namespace()}, str(checkpoint))
    for name in ("WORLD_SIZE", "SLURM_JOB_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)

    def run_script(name, *arguments, check=True, **environment):
        values = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "RECORD": str(record)}
        values.update({key: str(value) for key, value in environment.items()})
        command = ["bash", str(FOLDER / name), *map(str, arguments)]
        done = subprocess.run(
            command, env=values, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True
        )
        assert not check or done.returncode == 0, done.stderr
        run_script.failure = done.stderr
        return [path.read_text().split("\n")[1:-1] for path in sorted(record.iterdir())]

    run_script.checkpoint = checkpoint
    return run_script


def parse(command, arguments, folder):
    """Reads options with fairseq's own parser; returns its groups."""
    log = folder / f"{command}.options"
    output = run(command, arguments, log, prepare=stand_ins.parser_only)
    return json.loads(next(line[8:] for line in output.splitlines() if line.startswith("options ")))


MACHINES = {  # environment -> (GPUs, update-freq), the rows of the README's table
    "one V100": ({"GPUS": 1}, 1, 32),
    "8 V100": ({"GPUS": 8}, 8, 4),
    "8 A100": ({"GPUS": 8, "MAX_TOKENS": 8192}, 8, 1),
    "4 nodes by torchrun": ({"GPUS": 8, "WORLD_SIZE": 32}, 32, 1),
    "8 nodes by slurm": ({"GPUS": 8, "SLURM_JOB_NUM_NODES": 8, "MAX_TOKENS": 1024, "PORT": 29500}, 64, 1),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_makes_updates_of_the_same_size(call, machine):
    environment, gpus, update_freq = MACHINES[machine]
    (arguments,) = call("train.sh", "data", call.checkpoint, "save", **environment)
    found = {name: arguments[arguments.index(name) + 1] for name in ("--max-tokens", "--update-freq")}
    assert int(found["--update-freq"]) == update_freq
    assert int(found["--max-tokens"]) * update_freq * gpus == 65536
    assert ("--distributed-port" in arguments) == ("PORT" in environment)


def test_gpus_that_cannot_share_an_update_evenly_are_refused(call):
    assert call("train.sh", "data", call.checkpoint, "save", check=False, GPUS=3) == []
    assert "3 GPUs of MAX_TOKENS=2048 do not divide TOKENS=65536" in call.failure


@pytest.mark.parametrize("precision", ["--fp16", "--memory-efficient-fp16", "--amp", ""])
def test_fairseq_train_takes_every_option_of_the_script(data, call, tmp_path, precision):
    (arguments,) = call("train.sh", data, call.checkpoint, tmp_path / "save", GPUS=8, PORT=29500, PRECISION=precision)
    found = parse("train", [*absolute(arguments[1:]), "--cpu", "--fp16-no-flatten-grads"], tmp_path)
    assert found["optimization"]["update_freq"] == [4] and found["dataset"]["max_tokens"] == 2048
    assert found["distributed_training"]["ddp_backend"] == "legacy_ddp"
    assert found["distributed_training"]["distributed_port"] == 29500
    assert found["checkpoint"]["finetune_from_model"] == str(call.checkpoint)
    assert found["checkpoint"]["restore_file"] == "checkpoint_last.pt", "a restart must go on, not start again"
    assert not [word for word in arguments if word.startswith("--sd-")]  # the preset's values
    assert found["common"]["fp16"] == ("fp16" in precision) and found["common"]["amp"] == ("amp" in precision)


def test_generation_gives_every_shard_a_gpu_and_files_of_its_own(data, call, tmp_path):
    out = tmp_path / "out"
    commands = call("generate.sh", data, call.checkpoint, out, GPUS=2, SHARDS=4, FIRST_SHARD=2)
    assert len(commands) == 2
    for gpu, *arguments in commands:
        found = parse("generate", [*absolute(arguments), "--cpu"], tmp_path)
        distributed = found["distributed_training"]
        assert distributed["distributed_world_size"] == 4 and distributed["distributed_rank"] == 2 + int(gpu)
        assert found["task"]["sd_trace"] == str(out / f"switchable.{2 + int(gpu)}.trace.jsonl")
        assert found["generation"]["beam"] == 4 and found["generation"]["lenpen"] == 2.0
        (tmp_path / "generate.options").unlink()
    assert {path.name for path in out.iterdir()} == {"switchable.2.gen.txt", "switchable.3.gen.txt"}


def test_scoring_names_all_shards_of_both_systems(call, tmp_path):
    for name in ("dense", "switchable"):
        for shard in range(2):
            for ending in ("gen.txt", "trace.jsonl"):
                (tmp_path / f"{name}.{shard}.{ending}").touch()
    (arguments,) = call("score.sh", tmp_path)
    arguments = arguments[1:]
    for name in ("dense", "switchable"):
        start = arguments.index(f"--{name}")
        for offset, ending in ((1, "gen.txt"), (2, "trace.jsonl")):
            assert arguments[start + offset] == ",".join(str(tmp_path / f"{name}.{i}.{ending}") for i in range(2))


def absolute(arguments):
    """The package's folder in place of its name, which fairseq would look for where it is installed."""
    folder = str(FOLDER.parents[1] / "sd_fairseq")
    return [folder if before == "--user-dir" else one for before, one in zip(["", *arguments], arguments)]
