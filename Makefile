# make demo     the whole road on real text, from download to a table of results
# make test     all tests
# make checks   formatting, lint, types, layering
#
# Each target sets up what it needs in .venv the first time. PYTHON chooses the interpreter, PIP_FLAGS is handed to pip.

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n 2 --dist worksteal
DEMO_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Two test workers with one thread each: more threads than cores only slow one another down.
test checks: export OMP_NUM_THREADS = 1

.PHONY: demo test checks format clean
.DEFAULT_GOAL := test

demo: $(READY)
	@$(BIN)/python examples/debian_translation/demo.py $(DEMO_FLAGS)

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

checks: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_layering.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis examples/*/work

$(READY): pyproject.toml setup.py constraints.txt $(wildcard cktk/generation/operators/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cktk needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "python3 cannot make virtual environments: install python3-venv, or set PYTHON"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt -e '.[test]'
	@touch $@
