# Two commands do everything from a bare machine with Python 3.11:
#   make survey    the main job on the built-in vision and language tasks
#   make test      the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
# Spinning OpenMP threads make two busy processes on few cores five times slower (docs/log.md).
export GOMP_SPINCOUNT ?= 3000

.PHONY: survey demo theory study test check bench peers clean install help

help:
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# torch first, so that nothing after it pulls another build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Thalweg needs Python 3.11 or newer, found " + sys.version.split()[0] + ". Run make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

install: $(READY) ## create .venv and install

survey: $(READY) ## quantize, diagnose and recover the built-in tasks; writes runs/survey/report.html
	$(BIN)/thalweg survey $(ARGS)

demo: $(READY) ## a river in two dimensions, in seconds
	$(BIN)/thalweg demo $(ARGS)

theory: $(READY) ## every theorem against its simulation; writes runs/theory/theory.html
	$(BIN)/thalweg theory $(ARGS)

study: $(READY) ## claims tested over seeds; ARGS="studies/paper-llama.yaml --profile small" (matrix factorisation without)
	$(BIN)/thalweg study $(or $(ARGS),studies/paper-matrix.yaml)

test: $(READY) ## the tests
	$(BIN)/python -m pytest $(ARGS)

check: $(READY) ## lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(ARGS)

bench: $(READY) ## timings as ratios, ours and those of the peers that are installed
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/peers/race.py $(ARGS)

peers: $(READY) ## the same jobs beside other tools, each installed under .peers; writes runs/peers.json
	benchmarks/peers/install
	$(BIN)/python benchmarks/peers/race.py $(ARGS)

clean: ## remove .venv, runs and caches of this folder
	rm -rf $(VENV) runs build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
