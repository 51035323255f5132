"""Runs fairseq's commands in processes forked from one that has imported fairseq already; several ranks side by side.

A forked command runs fairseq's own ``cli_main`` with the command line a user would type, without the five seconds that
importing torch and fairseq takes. A rank can leave what it holds at the end (:func:`start`'s ``dump``), which fairseq
writes for rank 0 only.
"""

import functools
import importlib
import multiprocessing
import os
import socket
import sys
import warnings
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from pairs import read_pairs

ROOT = Path(__file__).resolve().parents[2]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["loaded", *(f"fairseq_cli.{name}" for name in ("preprocess", "train", "generate"))])

TASK = ["--user-dir", str(ROOT / "sd_fairseq"), "--task", "switchable_translation", "-s", "source", "-t", "target"]
SWITCHABLE = ["--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--sd-preset", "paper"]
TRAINING = [
    *("--encoder-layers", "3", "--decoder-layers", "2", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16"),
    *("--encoder-ffn-embed-dim", "32", "--decoder-ffn-embed-dim", "32"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
    *("--max-source-positions", "128", "--max-target-positions", "64", "--required-batch-size-multiple", "1"),
    *("--optimizer", "adam", "--lr", "1e-3", "--seed", "1", "--num-workers", "0", "--no-epoch-checkpoints"),
    *("--log-format", "json", "--log-interval", "1", "--no-progress-bar"),
]


@functools.lru_cache(maxsize=None)
def build_data(folder: Path) -> Path:
    """Makes a data folder from real texts of 5 to 40 words, once: 30 pairs train, 8 valid, 12 test."""
    folder.mkdir(parents=True)
    rows = read_pairs()[:50]
    pairs = [
        (row["document"].split()[: 5 + 35 * (7 * i % 50) // 50], row["summary"].split()[:12])
        for i, row in enumerate(rows)
    ]
    arguments = ["-s", "source", "-t", "target", "--destdir", folder / "bin", "--joined-dictionary"]
    for split, part in (("train", pairs[:30]), ("valid", pairs[30:38]), ("test", pairs[38:])):
        for column, side in enumerate(("source", "target")):
            text = "".join(" ".join(pair[column]) + "\n" for pair in part)
            (folder / f"{split}.{side}").write_text(text, encoding="utf-8")
        arguments += [f"--{split}pref", folder / split]
    run("preprocess", arguments, folder / "log")
    return folder / "bin"


def start(
    command: str,
    arguments: Sequence[Any],
    log: Path,
    dump: Optional[Path] = None,
    prepare: Optional[Callable[[], None]] = None,
) -> Any:
    """Starts a fairseq command; returns the process.

    Args:
        command: without prefix, such as "train".
        arguments: of the command line.
        log: file for its standard output and error.
        dump: file for what a training holds when it ends, see :func:`dump_trainer`.
        prepare: called first; a function of a module.
    """
    start_server()
    process = FORKS.Process(target=_run, args=(command, [str(one) for one in arguments], str(log), dump, prepare))
    process.start()
    return process


@functools.lru_cache(maxsize=None)
def start_server() -> None:
    """Starts what forks, which looks for the modules to load where its environment says."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), *filter(None, [before])])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ.update({} if before is None else {"PYTHONPATH": before})


def run(command: str, arguments: Sequence[Any], log: Path, **options: Any) -> str:
    """Runs a command to its end, which must be good; returns what it printed."""
    process = start(command, arguments, log, **options)
    return finish([process], [log])[0]


def finish(processes: Sequence[Any], logs: Sequence[Path], timeout: float = 120) -> List[str]:
    """Waits until all have ended well; returns what they printed. A process that hangs is killed."""
    outputs = fail_or_finish(processes, logs, timeout)
    codes = [process.exitcode for process in processes]
    assert codes == [0] * len(codes), f"exit codes {codes}\n" + "\n".join(output[-3000:] for output in outputs)
    return outputs


def fail_or_finish(processes: Sequence[Any], logs: Sequence[Path], timeout: float = 120) -> List[str]:
    """Waits until all have ended, however; returns what they printed."""
    for process in processes:
        process.join(timeout)
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
        process.join()
    outputs = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
    assert not hanging, "hangs\n" + "\n".join(output[-3000:] for output in outputs)
    return outputs


def train_together(
    ranks: int,
    arguments: Sequence[Any],
    folder: Path,
    check: bool = True,
    place: Callable[[int], Sequence[Any]] = lambda rank: ["--cpu", "--distributed-backend", "gloo"],
    **options: Any,
) -> List[Dict[str, Any]]:
    """Trains with one process per rank on this machine; returns what each rank holds at the end.

    Args:
        ranks: number of workers; 1 = no distribution at all.
        arguments: of fairseq-train.
        folder: for checkpoints and logs.
        check: True = all ranks must end well; False = returns their logs (and exit codes) instead.
        place: options that say where a rank runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = ["--distributed-init-method", f"tcp://localhost:{free_port()}", "--distributed-no-spawn"]
    address += ["--distributed-world-size", ranks]
    processes, logs, dumps = [], [], []
    for rank in range(ranks):
        log, dump = folder / f"log.{rank}", folder / f"rank.{rank}"
        member = [*address, "--distributed-rank", rank] if ranks > 1 else []
        processes.append(
            start("train", [*arguments, *place(rank), "--save-dir", folder, *member], log, dump=dump, **options)
        )
        logs.append(log)
        dumps.append(dump)
    if not check:
        outputs = fail_or_finish(processes, logs)
        return [{"code": process.exitcode, "output": output} for process, output in zip(processes, outputs)]
    finish(processes, logs)
    return [torch.load(str(dump), weights_only=False) for dump in dumps]


def free_port() -> int:
    """Finds a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def load(path: Path) -> Dict[str, Any]:
    """Loads a checkpoint."""
    return torch.load(str(path), map_location="cpu", weights_only=False)


def dump_trainer(module: Any, path: str) -> Callable[[], None]:
    """Replaces ``Trainer`` of fairseq_cli.train by one that remembers itself; returns what writes its state.

    Written are ``model``, ``num_updates`` and ``random`` (torch's generator).
    """
    made: List[Any] = []

    class Remembered(module.Trainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            made.append(self)

    module.Trainer = Remembered

    def write() -> None:
        state = {"model": made[0].get_model().state_dict(), "num_updates": made[0].get_num_updates()}
        torch.save({**state, "random": torch.get_rng_state()}, path)

    return write


def _run(
    command: str, arguments: List[str], log: str, dump: Optional[Path], prepare: Optional[Callable[[], None]]
) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # sums in the same order whatever the machine
    module = importlib.import_module(f"fairseq_cli.{command}")
    sys.argv = [module.__file__, *arguments]
    try:
        if prepare is not None:
            prepare()
        write = dump_trainer(module, str(dump)) if dump is not None else None
        module.cli_main()
        if write is not None:
            write()
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)
