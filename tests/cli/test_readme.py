"""README's drop-in recipe runs as printed, on a small model and the embedded data."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--encoder-layers", "3", "--decoder-layers", "2", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2", "--cpu", "--max-update", "2"),
    *("--max-source-positions", "256", "--max-target-positions", "64", "--disable-validation"),
]


def readme_command(name):
    """Returns the arguments of README's first command of that name, without shell redirection."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if f"\n{name} " in block)
    command = block[block.index(f"\n{name} ") + 1 :].replace("\\\n", " ").splitlines()[0]
    return shlex.split(command.split(" > ")[0])[1:]


def without(arguments, *flags):
    """Drops flags that have no value."""
    return [argument for argument in arguments if argument not in flags]


def replaced(arguments, **values):
    """Gives flags other values."""
    result = list(arguments)
    for flag, value in values.items():
        result[result.index("--" + flag.replace("_", "-")) + 1] = str(value)
    return result


def test_the_recipe_trains_from_plain_bart_and_generates(pipeline, tmp_path):
    from_readme = readme_command("fairseq-train")
    train = replaced(without(from_readme, "--fp16"), user_dir=ROOT / "sd_fairseq", arch="switchable_bart")
    train = replaced(train, finetune_from_model=pipeline.base)
    save = ["--save-dir", str(tmp_path / "checkpoints")]
    pipeline.fairseq("train", str(pipeline.data), *train[1:], *SMALL, *save)
    generate = readme_command("fairseq-generate")
    index = generate.index("--bpe")
    generate = without(generate[:index] + generate[index + 2 :], "--fp16", "--sd-rouge-ptb")
    generate = replaced(
        generate,
        user_dir=ROOT / "sd_fairseq",
        path=tmp_path / "checkpoints" / "checkpoint_last.pt",
        sd_trace=tmp_path / "trace.jsonl",
        min_len=5,
        max_len_b=12,
    )
    sides = ["--source-lang", "source", "--target-lang", "target", "--cpu"]
    finished = pipeline.fairseq("generate", str(pipeline.data), *generate[1:], *sides)
    assert "Generate test with beam=4: R-1" in finished.stdout
    assert (tmp_path / "trace.jsonl").exists()


def test_every_option_in_the_readme_is_explained_by_show_options():
    command = [sys.executable, "-W", "ignore", "-m", "sd_fairseq.commands.options"]
    shown = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--sd-[a-z-]+", readme)) - {"--sd-rouge-ptb"}
    assert len(named) > 10
    assert not {flag for flag in named if flag not in shown}


def test_the_plain_name_works_from_any_folder_once_installed(pipeline, tmp_path):
    where = "import sd_fairseq, sys; sys.stdout.write(sd_fairseq.__file__)"
    installed = subprocess.run([sys.executable, "-c", where], cwd=str(tmp_path), stdout=subprocess.PIPE, check=False)
    if installed.returncode or "site-packages" not in installed.stdout.decode():
        pytest.skip("sd_fairseq is not installed in this environment")
    command = [sys.executable, "-m", "fairseq_cli.generate", str(pipeline.data), "--user-dir", "sd_fairseq"]
    command += ["--task", "switchable_translation", "--path", str(pipeline.switchable), "--cpu", "--max-len-b", "5"]
    finished = subprocess.run(
        command, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert len(re.findall(r"^H-", finished.stdout, re.MULTILINE)) == 17


BENCHMARKS = {
    "saving.py": ["--source-length", "20", "--mixed-source-length", "20"],
    "training_step.py": ["--source-length", "20", "--target-length", "6", "--batch-size", "2"],
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_write_both_times_of_every_ratio(name, tmp_path):
    options = ["--size", "tiny", "--rounds", "1", "--threads", "1", "--output", str(tmp_path / "rows.json")]
    command = [sys.executable, str(ROOT / "benchmarks" / name), *options, *BENCHMARKS[name]]
    finished = subprocess.run(
        command,
        cwd=str(ROOT),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    for row in json.loads((tmp_path / "rows.json").read_text(encoding="utf-8")):
        assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"], rel=0.05)
        assert row["spread"][0] <= row["spread"][1] and row["versions"]["torch"]
