"""Stop and go on: a training that is killed and started again ends where an unbroken one ends, to the bit."""

import argparse
import fractions
import os
import random
import re
import time

import pytest
import torch
from dropin.workers import SWITCHABLE, TASK, TRAINING, build_data, fail_or_finish, load, run, start

UPDATES = int(os.environ.get("SD_KILL_UPDATES", "60"))
KILLS = 5
OPTIONS = [
    *SWITCHABLE,
    *("--cpu", "--batch-size", "5", "--dropout", "0.2", "--attention-dropout", "0.1", "--clip-norm", "0.5"),
    *("--sd-policy-lr", "0.005", "--sd-tolerance", "0", "--sd-constraint-interval", "3", "--store-ema"),
    *("--save-interval-updates", "4", "--keep-interval-updates", "2", "--validate-interval-updates", "16"),
    *("--lr-scheduler", "inverse_sqrt", "--warmup-updates", "10"),
]


def training(data, folder, updates=UPDATES):
    return [data, *TASK, *TRAINING, *OPTIONS, "--save-dir", folder, "--max-update", updates]


def updates_logged(log):
    """The last update that a log tells of."""
    found = re.findall(r'train_inner\W.*"num_updates": "(\d+)"', read(log))
    return int(found[-1]) if found else 0


def read(log):
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("fairseq")
    return build_data(tmp_path_factory.getbasetemp() / "dropin-data")


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """What a training holds at the end that nobody disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("unbroken")
    run("train", training(data, folder), folder / "log", dump=folder / "end")
    return folder


def lasting(folder):
    """All of a checkpoint and of the end of the run but times: what the next update depends on."""
    checkpoint, end = load(folder / "checkpoint_last.pt"), load(folder / "end")
    extra = checkpoint["extra_state"]
    return {
        "model": checkpoint["model"],
        "moments": checkpoint["last_optimizer_state"],
        "averaged weights": extra["ema"],
        "iterator": extra["train_iterator"],
        "best": extra["best"],
        "validation": extra["val_loss"],
        "learning rate": checkpoint["optimizer_history"][-1],
        "at the end": end,
    }


def differences(left, right, place=""):
    """Lists the places in which two nested values differ by as much as one bit."""
    if isinstance(left, dict):
        keys = sorted(set(left) | set(right), key=str)
        return [
            one
            for key in keys
            for one in (
                differences(left[key], right[key], f"{place}/{key}")
                if key in left and key in right
                else [f"{place}/{key}"]
            )
        ]
    if isinstance(left, (list, tuple)):
        pairs = [] if len(left) == len(right) else [place]
        return pairs + [one for i, pair in enumerate(zip(left, right)) for one in differences(*pair, f"{place}/{i}")]
    same = torch.equal(left, right) if torch.is_tensor(left) else left == right
    return [] if same else [place]


def test_killed_five_times_a_training_ends_where_an_unbroken_one_ends(data, unbroken, tmp_path):
    seed = int(os.environ.get("SD_KILL_SEED", random.randrange(10**6)))
    chance = random.Random(seed)
    print(f"seed of the kill moments: {seed} (SD_KILL_SEED={seed} repeats them)")
    log, kills = tmp_path / "log", []
    for number in range(KILLS):
        reached = updates_logged(log)
        process = start("train", training(data, tmp_path), log)
        kill_at = reached + chance.randint(5, max(5, (UPDATES - 8 - reached) // (KILLS - number)))
        wait_until(process, lambda at=kill_at: updates_logged(log) >= at)
        if number % 2:
            wait_until(process, lambda: list(tmp_path.glob("*.tmp")) or updates_logged(log) > UPDATES - 6)
        else:
            time.sleep(chance.random() * 0.1)
        assert process.is_alive(), f"ended before it was killed\n{read(log)[-2000:]}"
        process.kill()
        process.join()
        kills.append((updates_logged(log), [path.name for path in tmp_path.glob("*.tmp")]))
    print(f"killed at updates, with unfinished files: {kills}")
    run("train", training(data, tmp_path), log, dump=tmp_path / "end")
    assert read(log).count("Loaded checkpoint") == KILLS
    model = load(unbroken / "checkpoint_last.pt")["model"]
    assert float(model["policy_learner.products_updates"]) > 20  # the multiplier's averages are among what is compared
    assert not differences(lasting(unbroken), lasting(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_last_checkpoint_that_a_kill_cut_short_is_replaced_by_the_one_it_is_a_copy_of(
    data, unbroken, tmp_path, share
):
    whole = next(unbroken.glob(f"checkpoint_*_{UPDATES - 4}.pt"))
    content = whole.read_bytes()
    (tmp_path / whole.name).write_bytes(content)
    (tmp_path / "checkpoint_last.pt").write_bytes(content[: int(share * len(content))])
    (tmp_path / "checkpoint_best.pt.tmp").write_bytes(content[:100])
    output = run("train", training(data, tmp_path), tmp_path / "log", dump=tmp_path / "end")
    assert f"going on from {tmp_path / whole.name}" in output
    assert not differences(lasting(unbroken), lasting(tmp_path))


def test_a_whole_last_checkpoint_is_left_alone_even_if_torch_refuses_its_types(data, tmp_path):
    last, other = tmp_path / "checkpoint_last.pt", tmp_path / "checkpoint_1_4.pt"
    torch.save({"model": {}, "args": fractions.Fraction(1, 2)}, str(last))
    torch.save({"model": {}, "args": argparse.Namespace()}, str(other))
    before = last.read_bytes()
    output = refuse(data, tmp_path)
    assert "fractions.Fraction" in output and last.read_bytes() == before


@pytest.mark.parametrize("place", ["checkpoint_last.pt", "given.pt"])
def test_a_truncated_checkpoint_gives_one_line(data, unbroken, tmp_path, place):
    content = (unbroken / "checkpoint_last.pt").read_bytes()
    (tmp_path / place).write_bytes(content[: len(content) // 3])
    given = ["--restore-file", tmp_path / place] if place == "given.pt" else []
    output = refuse(data, tmp_path, *given)
    assert str(tmp_path / place) in output and "truncated" in output
    assert sorted(path.name for path in tmp_path.glob("*.pt*")) == [place]


def refuse(data, folder, *options):
    """Runs a training that must be refused; returns the one line that says why."""
    process = start("train", [*training(data, folder), *options], folder / "log")
    (output,) = fail_or_finish([process], [folder / "log"])
    assert process.exitcode == 1 and "Traceback" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("sd_fairseq: error: ")]
    assert len(errors) == 1 and errors[0] == output.splitlines()[-1]
    return errors[0]


def wait_until(process, is_so):
    """Waits for something that a training does; gives up when it has ended."""
    while process.is_alive() and not is_so():
        time.sleep(0.001)
