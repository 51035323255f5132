"""The whole way of a user in one walk: train, go on, generate, interactive, score, report.

What trains, generates and answers is started as a user starts it, in a Python that has nothing loaded.
"""

import json
import re
import shutil
import subprocess
import sys

from sd_fairseq.decision.trace import read_trace

COLD = {"program": sys.executable}
SEARCH = ["--beam", 4, "--no-repeat-ngram-size", 3, "--max-len-b", 10, "--cpu"]


def column(prefix, output):
    """Texts of fairseq's lines of one kind, by sentence."""
    found = re.findall(rf"^{prefix}-(\d+)\t(?:-?\d\S*\t)?(.*)$", output, re.MULTILINE)
    return {int(number): text for number, text in found}


def go_on_training(pipeline):
    """Two more updates from where the fixture's training stopped."""
    (pipeline.folder / "longer").mkdir()
    shutil.copy(str(pipeline.switchable), str(pipeline.folder / "longer"))
    options = ["--arch", "switchable_bart_tiny", "--criterion", "sd_policy_criterion", "--max-update", "14"]
    log = pipeline.train("longer", *options, "--disable-validation", **COLD).stdout
    updates = [int(number) for number in re.findall(r'train_inner \| .*"num_updates": "(\d+)"', log)]
    assert updates == [13, 14]
    return pipeline.folder / "longer" / "checkpoint_last.pt"


def test_the_whole_way_from_text_to_report(pipeline, tmp_path):
    report = [sys.executable, "-m", "sd_fairseq.evaluation.report", "--output-dir", str(tmp_path / "report")]
    systems = {"dense": pipeline.base, "switchable": go_on_training(pipeline)}
    outputs = {}
    for name, checkpoint in systems.items():
        trace, output = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.txt"
        start = COLD if name == "switchable" else {}
        outputs[name] = pipeline.generate(checkpoint, *SEARCH, "--sd-trace", trace, **start).stdout
        output.write_text(outputs[name], encoding="utf-8")
        assert column("H", outputs[name]).keys() == set(range(17))
        assert [(record.id, record.beam) for record in read_trace(str(trace))] == [(i, 4) for i in range(17)]
        report += [f"--{name}", str(output), str(trace)]
    generated = column("H", outputs["switchable"])
    for words in map(str.split, generated.values()):
        trigrams = list(zip(words, words[1:], words[2:]))
        assert len(trigrams) == len(set(trigrams))

    arguments = [*pipeline.task, *SEARCH, "--path", systems["switchable"]]
    text = pipeline.pairs["test"][0][0] + "\n"
    answer = pipeline.fairseq("interactive", pipeline.data, *arguments, stdin=text, **COLD)
    assert column("H", answer.stdout)[0] == generated[0]

    for kind in "TD":
        texts = column(kind, outputs["switchable"]).values()
        (tmp_path / kind).write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    assert "BLEU" in pipeline.fairseq("score", "--sys", tmp_path / "D", "--ref", tmp_path / "T").stdout

    finished = subprocess.run(report, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    figures = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert figures["dense"]["flops_generation"] == 1.0
    assert "switchable" in figures
