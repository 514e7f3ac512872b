# The two commands of the README, and the habits of the people who work here.
#
#   make quickstart     set up, then the whole pipeline on packaged data, offline
#   make test           set up, then the tests that need neither a GPU nor a network, but the slow ones
#   make test-all       the slow ones as well
#   make bench-gpu      on a machine with a card: tests marked gpu, then predicted and measured memory at true size
#
# Set-up uses the newest python3.11 found; PYTHON=... names another. On a machine without a CUDA device the CPU build of
# torch is enough and 5 GB smaller: TORCH_INDEX=https://download.pytorch.org/whl/cpu. With one, leave it out.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INDEX := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)

.PHONY: setup quickstart test test-all check format bench bench-gpu docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(INDEX) torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,synth,hub]"
	touch $(STAMP)

quickstart: setup
	$(BIN)/sonotune quickstart

# As many processes as cores, four at most, with one thread each: the models of the tests are too small for more.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test: setup
	$(PYTEST) -m "not gpu and not network and not slow"

test-all: setup
	$(PYTEST) -m "not gpu and not network"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/train_throughput/run.py

bench-gpu: setup
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/planner/run.py --device cuda --out benchmarks/planner/results/cuda.json

docs: setup
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
