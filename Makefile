# MammoFed: `make simulate` runs the default study, `make test` the whole suite. Both make .venv and install first.
# Variables: PYTHON (3.11 or newer), ARGS (handed to `mammofed simulate`), TESTS (handed to pytest), JOBS (test processes),
# EXTRAS (what a fresh environment for tests has besides: test, mlflow, tensorboard, ...).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= auto
ARGS ?=
TESTS ?= tests
EXTRAS ?= test
# A mark for each choice of extras: with one mark for all, an extra asked for later would be missing and its tests skipped.
comma := ,
INSTALLED_TEST := $(VENV)/.installed-$(subst $(comma),+,$(EXTRAS))

# Several processes share the cores: without this, OpenMP threads that spin while they wait cost six- to elevenfold.
export OMP_WAIT_POLICY = passive
export OMP_NUM_THREADS = 1

.PHONY: help install install-test simulate test lint bench clean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed ## make .venv with what is needed to run
install-test: $(INSTALLED_TEST) ## the same and what is needed to test

simulate: $(VENV)/.installed ## run the default study (ARGS="privacy=none sites=8")
	$(BIN)/mammofed simulate $(ARGS)

test: lint ## lint, types and the whole test suite; at its end CPU-seconds by part (tests/shares.py)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(INSTALLED_TEST) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED_TEST) ## speed, memory and bytes, as ratios in one run
	$(BIN)/mammofed simulate bench $(ARGS)

clean: ## remove .venv and what tools left; studies in runs/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "MammoFed needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Set PYTHON=python3.12, say."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(INSTALLED_TEST): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.installed
