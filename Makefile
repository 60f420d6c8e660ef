# make test   lint, types, tests          make demo   the toolkit's main job on example data
# make slow   the tests that take longer: several processes, kills, full-size models, whole documents
# make docs   the documents as a site in site/
# Both make .venv first, with the versions of constraints.txt. PYTHON=python3.12 make test  uses another interpreter.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install test lint types unit slow demo docs format clean

help:
	@grep -E '^# ' Makefile | cut -c3-

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.installed

test: lint types unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

unit: install
	$(BIN)/python -m pytest -n 2 -q

slow: install
	$(BIN)/python -m pytest -n 2 -q -m slow

demo: install
	$(BIN)/python scripts/demo.py

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist outputs site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
