"""Does it last? Many documents through one process, and a training that is killed again and again.

``python tools/soak.py FOLDER [--documents 10000] [--updates 2000] [--kills 10] [--texts MORE.jsonl.gz ...]``.
The texts are the shipped Debian pairs, and those of the files that are given.

1. ``fairseq-interactive`` answers documents of all lengths up to the model's limit, mixed. Memory must be flat after
   the first fifth; every line is answered, as ``fairseq-generate`` answers it; the trace has every line once.
2. A training is killed (SIGKILL) so many times and started again by the same command. Its weights at the end must be
   those of a training that nobody killed, bit for bit.

Exit code 1, and one line a fault, where that does not hold.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch

from sd_fairseq.decision.trace import read_trace

ROOT = Path(__file__).resolve().parents[1]
PAIRS = ROOT / "examples" / "data" / "debian" / "train.jsonl.gz"
LIMIT = 256  # tokens of a source, with its end
TASK = ["--user-dir", str(ROOT / "sd_fairseq"), "--task", "switchable_translation"]
TASK += ["-s", "source", "-t", "target", "--cpu"]
MODEL = [
    *("--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--optimizer", "adam", "--lr", "1e-3"),
    *("--encoder-layers", "3", "--decoder-layers", "2", "--encoder-embed-dim", "64", "--decoder-embed-dim", "64"),
    *("--encoder-ffn-embed-dim", "128", "--decoder-ffn-embed-dim", "128", "--share-all-embeddings", "--seed", "1"),
    *("--max-source-positions", str(LIMIT), "--max-target-positions", str(LIMIT), "--max-tokens", "2048"),
    *("--num-workers", "0", "--log-format", "json", "--log-interval", "1", "--disable-validation"),
    *("--no-epoch-checkpoints", "--keep-interval-updates", "1"),
]
SEARCH = ["--beam", "2", "--max-len-b", "12", "--max-tokens", "4096"]
FLAT = 0.03  # how much more memory the last fifth may need than the second, as a part
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def command(name: str, *arguments: Any) -> List[str]:
    """A fairseq command line."""
    return [sys.executable, "-m", f"fairseq_cli.{name}", *map(str, arguments)]


def fairseq(name: str, *arguments: Any) -> str:
    """Runs a fairseq command; returns what it prints."""
    done = subprocess.run(command(name, *arguments), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise SystemExit(done.stderr.decode()[-2000:])
    return done.stdout.decode()


def read_texts(path: Path) -> List[str]:
    """Reads ``document``, or else ``source``, of every line of gzipped JSON lines; a list is joined."""
    with gzip.open(str(path), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    fields = [row["document"] if "document" in row else row["source"] for row in rows]
    return [one if isinstance(one, str) else " ".join(one) for one in fields]


def prepare(folder: Path, count: int, more: List[Path]) -> List[str]:
    """Writes and binarises documents of 1 to ``LIMIT - 1`` words, mixed; returns them."""
    with gzip.open(str(PAIRS), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row["document"] for row in rows] + [text for path in more for text in read_texts(path)]
    words = " ".join(texts).split()
    generator = random.Random(1)
    documents = []
    for _ in range(count):
        start = generator.randrange(len(words) - LIMIT)
        documents.append(" ".join(words[start : start + generator.randint(1, LIMIT - 1)]))
    pairs = [(" ".join(row["document"].split()[:60]), " ".join(row["summary"].split())) for row in rows[:2000]]
    for split, texts in (("train", pairs), ("test", [(one, "nothing") for one in documents])):
        for side, column in (("source", 0), ("target", 1)):
            text = "".join(pair[column] + "\n" for pair in texts)
            (folder / f"{split}.{side}").write_text(text, encoding="utf-8")
    options = ["--joined-dictionary", "--trainpref", folder / "train", "--testpref", folder / "test"]
    fairseq("preprocess", "-s", "source", "-t", "target", *options, "--nwordssrc", 4000, "--destdir", folder / "bin")
    return documents


def read_hypotheses(text: str) -> Dict[int, str]:
    """Line number -> hypothesis."""
    rows = [line.split("\t") for line in text.splitlines() if line.startswith("D-")]
    return {int(row[0][2:]): row[2] for row in rows}


def answer(folder: Path, checkpoint: Path) -> Tuple[str, List[float]]:
    """Sends the documents through one fairseq-interactive; returns what it prints, and its memory on the way in MiB."""
    options = ["--path", checkpoint, *SEARCH, "--buffer-size", 16, "--sd-trace", folder / "trace.jsonl"]
    memory, printed = [], []
    with open(str(folder / "test.source"), "rb") as documents, open(str(folder / "interactive.err"), "wb") as errors:
        process = subprocess.Popen(
            command("interactive", folder / "bin", *TASK, *options),
            env=ENVIRONMENT,
            stdin=documents,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        for line in process.stdout or ():
            printed.append(line.decode())
            if line.startswith(b"D-"):
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                memory.append(pages * resource.getpagesize() / 2**20)
        if process.wait() != 0:
            raise SystemExit((folder / "interactive.err").read_text()[-2000:])
    return "".join(printed), memory


def check_answers(folder: Path, checkpoint: Path, documents: List[str]) -> List[str]:
    """The first part; returns its faults."""
    text, memory = answer(folder, checkpoint)
    found = read_hypotheses(text)
    whole = read_hypotheses(fairseq("generate", folder / "bin", *TASK, "--path", checkpoint, *SEARCH))
    traced = [record.id for record in read_trace(str(folder / "trace.jsonl"))]
    fifth = len(memory) // 5
    early, late = max(memory[fifth : 2 * fifth]), max(memory[-fifth:])
    other = [line for line in whole if found.get(line) != whole[line]]
    print(f"{len(found)} of {len(documents)} lines answered, {len(other)} not as in one batch, {len(traced)} traced")
    print(f"memory: {memory[0]:.0f} MiB at the first answer, {early:.0f} in the second fifth, {late:.0f} in the last")
    faults = []
    if sorted(found) != list(range(len(documents))):
        faults.append(f"{len(documents) - len(found)} lines are not answered")
    if other:
        faults.append(f"line {other[0]} is answered in another way than in one batch ({len(other)} such)")
    if traced != list(range(len(documents))):
        faults.append("the trace does not have every line once")
    if late > (1 + FLAT) * early:
        faults.append(f"memory grows from {early:.0f} to {late:.0f} MiB")
    return faults


def train(folder: Path, name: str, updates: int) -> List[str]:
    """The command of a training into ``folder/name``."""
    often = ["--save-interval-updates", max(10, updates // 100), "--max-update", updates]
    return command("train", folder / "bin", *TASK, *MODEL, *often, "--save-dir", folder / name)


def kill_after(line: List[str], steps: int, delay: float) -> None:
    """Starts a training and kills it ``delay`` seconds after its so manieth logged update."""
    with subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for text in process.stdout or ():
            steps -= b"train_inner" in text
            if steps <= 0:
                break
        time.sleep(delay)
        process.kill()


def check_resuming(folder: Path, updates: int, kills: int) -> List[str]:
    """The second part; returns its faults."""
    generator, part = random.Random(2), max(3, updates // kills)
    for number in range(kills):
        kill_after(train(folder, "killed", updates), generator.randint(part // 2, part), generator.uniform(0, 0.5))
        print(f"killed {number + 1} times, {len(list((folder / 'killed').glob('*.pt')))} checkpoints", flush=True)
    states = []
    for name in ("killed", "whole"):
        subprocess.run(train(folder, name, updates), env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
        states.append(torch.load(str(folder / name / "checkpoint_last.pt"), weights_only=False)["model"])
    other = [key for key in states[1] if not torch.equal(states[0][key], states[1][key])]
    print(f"{updates} updates, killed {kills} times: {len(other)} of {len(states[1])} weights differ")
    return [f"{other[0]} is another after {kills} kills"] if other else []


def main() -> int:
    """Runs both parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="empty or new")
    parser.add_argument("--documents", type=int, default=10000, help="at least 50 (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=2000, help="of the training (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="of the training (default: %(default)s)")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="gzipped JSON lines with document or source")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    documents = prepare(args.folder, args.documents, args.texts)
    faults = check_resuming(args.folder, args.updates, args.kills)
    faults += check_answers(args.folder, args.folder / "whole" / "checkpoint_last.pt", documents)
    for fault in faults:
        print("fault: " + fault)
    print(f"{len(faults)} faults, {time.perf_counter() - started:.0f} s")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
