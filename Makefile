# make test   set up .venv, check style, types and imports, run every test
# make demo   set up .venv, fetch a small real model and texts, run recipes/demo.yaml on it
# make bench-NAME   run benchmarks/NAME.py
# make results-stale   list the results in docs/results that are older than the code they measure, with their commands
# make test-engines   set up llama.cpp, vLLM and torchao in .engines (about 25 minutes, 4 GB) and run the tests in them;
#                     with ENGINES=vllm that one alone, and tests in the others are skipped

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PIP := $(BIN)/pip --disable-pip-version-check --quiet
ENGINES ?= llama_cpp vllm torchao
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup test test-engines unit lint demo docs results-stale clean

help:
	@sed -n 's/^# //p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python"; exit 1; }
	@echo "setting up $(VENV) (a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt torch==2.13.0
	@$(PIP) install --constraint constraints.txt --editable '.[all]'
	@$(BIN)/python tools/dev_requirements.py | xargs $(PIP) install --constraint constraints.txt
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP)
	$(PYTEST) -m "not slow and not engines"

test: lint
	$(BIN)/python demo/fetch.py
	$(PYTEST)

test-engines: $(STAMP)
	for engine in $(ENGINES); do PYTHON=$(CURDIR)/$(BIN)/python tools/engines/$$engine.sh || exit 1; done
	$(BIN)/python demo/fetch.py
	$(BIN)/pytest -m engines tests/engines $(TESTS)

demo: $(STAMP)
	$(BIN)/python demo/fetch.py
	$(BIN)/ffn-fusion run recipes/demo.yaml

bench-%: $(STAMP)
	$(BIN)/python benchmarks/$*.py

docs: $(STAMP)
	$(BIN)/python tools/docs.py

results-stale: $(STAMP)
	$(BIN)/python benchmarks/stale.py

clean:
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
