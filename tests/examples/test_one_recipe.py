"""There is one recipe, the preset: no example repeats one of its values, and none contradicts it."""

import re
from pathlib import Path

import pytest

pytest.importorskip("fairseq")
from sd_fairseq.plugin.guards import presets  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("quickstart", "summarization", "glue", "squad")  # tradeoff's grid is what compares recipes
SCRIPTS = [path for name in EXAMPLES for path in sorted((ROOT / "examples" / name).glob("*.sh"))]
PAGES = [ROOT / "README.md", ROOT / "docs" / "guide.md", *(ROOT / "examples" / name / "README.md" for name in EXAMPLES)]
SET = {presets.flag(name) for name in (*presets._PAPER, "sd_violation_smoothing", *presets.MODEL_VALUES["paper"])}


def commands(path):
    """What a script or a page gives to be run."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sh":
        return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return "\n".join(re.findall(r"```(?:bash|diff)\n(.*?)```", text, re.DOTALL))


@pytest.mark.parametrize("path", SCRIPTS + PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_example_says_what_the_preset_says(path):
    assert not SET & set(re.findall(r"--sd-[a-z-]+", commands(path)))


def test_the_options_of_the_preset_are_looked_for():
    assert len(SCRIPTS) > 5 and {"--sd-flops-budget", "--sd-tolerance", "--sd-space", "--sd-policy-lr"} <= SET
