"""What registers models, tasks, criterion and scorer with fairseq, each in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

ROOT = Path(__file__).resolve().parents[2]
REGISTERED = """
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.scoring import SCORER_REGISTRY
from fairseq.tasks import TASK_REGISTRY
assert "switchable_bart_base" in ARCH_MODEL_REGISTRY, "architecture"
assert {"switchable_translation", "switchable_squad", "switchable_sentence_prediction"} <= set(TASK_REGISTRY), "tasks"
assert "sd_policy_criterion" in CRITERION_REGISTRY, "criterion"
assert "sd_rouge" in SCORER_REGISTRY, "scorer"
"""
USER_DIR = """
import argparse
from fairseq.utils import import_user_module
import_user_module(argparse.Namespace(user_dir={!r}))
""".format(str(ROOT / "sd_fairseq"))


def run(code):
    """Runs Python code; returns the finished process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, universal_newlines=True)


@pytest.mark.parametrize(
    "code",
    [
        USER_DIR,
        "import fairseq, sd_fairseq",
        "from sd_fairseq.plugin.models.switchable_bart import SwitchableBARTModel",
        "import sd_fairseq, sd_fairseq.plugin",
    ],
    ids=["user-dir", "after fairseq", "hub", "plugin"],
)
def test_everything_is_registered(code):
    done = run(code + REGISTERED)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_package_alone_loads_neither_fairseq_nor_torch():
    done = run("import sd_fairseq, sys; assert not {'fairseq', 'torch'} & set(sys.modules), 'loaded'")
    assert done.returncode == 0, done.stderr[-2000:]
