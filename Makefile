# make demo    train, generate and report on real text    make lint    ruff and mypy
# make test    all tests                                  make bench   speed and memory against other software
# make options  docs/options.md again, after an option changed
# make fuzz    100,000 and more broken files for every reader, ten minutes
# make mutants  300 small changes of the code: how many does a test notice?
# make soak    10,000 documents through one process; a training killed ten times
# make matrix  the end-to-end tests on every Python found    make clean   remove the environments and caches
#
# Both set up everything they need in $(VENV) the first time. PYTHON picks the interpreter, TORCH the torch to install.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
AT_LEAST = $(BIN)/python -c 'import sys; sys.exit(sys.version_info < $(1))'
SOURCES := setup.py $(shell find sd_fairseq -name '*.py' -o -name '*.cpp' -o -name '*.h')

.PHONY: demo test lint options bench fuzz mutants soak matrix clean setup
.DELETE_ON_ERROR:

setup: $(STAMP)

# fairseq 0.12.2, for Python before 3.11, needs an omegaconf whose metadata pip 24.1 no longer reads.
# Before Python 3.10 there is no torch 2.13: setup.py's own choice is taken.
$(VENV)/.dependencies: setup.py
	@echo "Setting up $(VENV) with torch and fairseq (once, some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(call AT_LEAST,(3, 11)) || $(PIP) install 'pip<24.1'
	@! $(call AT_LEAST,(3, 10)) || $(PIP) install '$(TORCH)'
	@$(PIP) install setuptools wheel '.[tests,plots]'
	@touch $@

# The installed copy follows the sources; nothing is downloaded for that.
$(STAMP): $(VENV)/.dependencies $(SOURCES)
	@rm -rf build
	@$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@rm -rf build
	@touch $@

demo: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" bash examples/quickstart/run.sh

# One file at a time on every core, each with one thread: more threads than cores would be much slower.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Prints how many files each reader was given. The short form of the same is part of `make test`.
fuzz: $(STAMP)
	SD_FUZZ=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -q

# Goes on where it was stopped; an hour on two cores. cosmic-ray makes the changes, the files stay as they are.
mutants: $(STAMP)
	$(PIP) install cosmic-ray coverage
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py runs/mutants --control

# 10,000 documents through one process, and a training that is killed ten times: an hour on two cores.
soak: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tools/soak.py runs/soak

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

options: $(STAMP)
	$(BIN)/sd-options --markdown > docs/options.md.part
	mv docs/options.md.part docs/options.md

# An environment of its own: fairseq's torchaudio, built for CUDA, keeps transformers from being imported.
BENCH := .venv-bench/bin/python
bench:
	$(MAKE) setup VENV=.venv-bench
	$(BENCH) -m pip --disable-pip-version-check --no-input -qq install transformers ctranslate2
	$(BENCH) -m pip --disable-pip-version-check --no-input -qq uninstall -y torchaudio
	$(BENCH) benchmarks/generation.py --rounds 2
	$(BENCH) benchmarks/saving.py --precision bf16 --rounds 2
	$(BENCH) benchmarks/saving.py --precision bf16 --rounds 1 --sweep --output runs/bench/sweep.json
	$(BENCH) benchmarks/training_step.py --rounds 1
	$(BENCH) benchmarks/table.py runs/bench

# MATRIX='--only 3.8 3.13' restricts the rows; the others of the table stay.
matrix:
	$(PYTHON) tests/matrix.py $(MATRIX)

clean:
	rm -rf $(VENV) .venv-bench .venv-matrix build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
