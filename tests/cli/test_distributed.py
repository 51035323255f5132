"""Several workers learn what one learns: same multiplier, same policy, same backbone (gloo, two processes on CPU)."""

import socket
import subprocess
import sys

import torch

OPTIONS = [
    *("--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--sd-policy-lr", "0.01"),
    *("--dropout", "0", "--max-update", "8", "--disable-validation", "--max-tokens", "300", "--sd-tolerance", "0"),
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def train_two_workers(pipeline, name):
    """Starts one process per rank and waits for both."""
    address = ["--distributed-init-method", f"tcp://localhost:{free_port()}", "--distributed-no-spawn"]
    address += ["--distributed-world-size", "2", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
    save = ["--save-dir", str(pipeline.folder / name)]
    command = [sys.executable, "-W", "ignore", "-m", "fairseq_cli.train", str(pipeline.data)]
    command += [*pipeline.task, *pipeline.training, *save, *OPTIONS, "--update-freq", "1", *address]
    workers = [
        subprocess.Popen(
            [*command, "--distributed-rank", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            env=pipeline.environment,  # as many threads as the single worker: sums in the same order
        )
        for rank in (0, 1)
    ]
    outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]


def load(pipeline, name):
    return torch.load(str(pipeline.folder / name / "checkpoint_last.pt"), weights_only=False)["model"]


def test_two_workers_equal_one_with_twice_the_micro_batches(pipeline):
    pipeline.train("one-worker", *OPTIONS, "--update-freq", "2")
    train_two_workers(pipeline, "two-workers")
    one, two = load(pipeline, "one-worker"), load(pipeline, "two-workers")
    assert one.keys() == two.keys()
    assert float(one["policy_learner.steps"]) == float(two["policy_learner.steps"]) == 8
    torch.testing.assert_close(one["policy_learner.multiplier"], two["policy_learner.multiplier"], rtol=1e-4, atol=1e-5)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
