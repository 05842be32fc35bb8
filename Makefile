# One word a chore. Every target creates .venv with the pinned stack when it is missing.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3,10) <= sys.version_info[:2] <= (3,12))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup quickstart test test-slow test-gpu lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## create .venv and install the pinned stack

$(READY): requirements.txt requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.10, 3.11 or 3.12 found (XTuner 0.2 refuses 3.13). Install one, or: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "==> Creating $(VENV) with $$($(PYTHON) --version) (PyTorch alone is about 5 GB; some minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> Installing the pinned stack (requirements-dev.txt)"
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	@echo "==> Installing xtuner 0.2.0 without its own pins"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps xtuner==0.2.0
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
	@echo "==> $(VENV) is ready"

quickstart: $(READY)  ## the whole chain on toy data: assemble, train, export, chat (10 minutes on 2 cores)
	@echo "==> Quick start: results go to work_dirs/quickstart"
	@$(BIN)/python tools/quickstart.py

test: $(READY)  ## unit tests (some minutes on 2 cores)
	@echo "==> Unit tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(READY)  ## the slow tier: several processes, full-size models, other transformers versions
	@echo "==> Slow tests"
	@$(BIN)/python -m pytest -m slow --durations=15 $(ARGS)

test-gpu: $(READY)  ## what needs a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(READY)  ## ruff, with undefined names on
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(READY)  ## let ruff rewrite
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## remove runs and caches (keeps .venv)
	rm -rf work_dirs .pytest_cache .ruff_cache
