# Everything a clone needs. `make` alone lists the targets.
# PYTHON is the interpreter that .venv is made of: make test PYTHON=/path/to/python3.12

PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# pyright: the release that constraints.txt pins brings its own code, and nothing newer is looked for.
export PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# mkdocs-material: the notice on its successor.
export NO_MKDOCS_2_WARNING := 1

# Tiny tensors gain nothing from threads. Off line, the hub's client fails at once.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
# Two workers even on two cores: tests of ranks often wait. With more cores: make test PYTEST_WORKERS=4
PYTEST_WORKERS ?= 2
step = @printf '\n== %s\n' '$(1)'

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-long checks types docs serve format clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.runtime  ## The whole job on a small model and embedded data, in minutes, on the CPU
	$(BIN)/misotune quickstart

test: checks  ## Everything that CI runs: checks, tests, docs
	$(call step,tests)
	$(PYTEST) --numprocesses $(PYTEST_WORKERS)
	@$(MAKE) --no-print-directory docs

test-long: $(VENV)/.dev  ## Tests that CI leaves out: two hosts (root, Linux), a whole batch job, bfloat16 engines
	$(PYTEST) -m "long or hosts"

checks: $(VENV)/.dev  ## Format, lint, types and import directions
	$(call step,format)
	@$(BIN)/ruff format --check .
	$(call step,lint)
	@$(BIN)/ruff check .
	@$(MAKE) --no-print-directory types
	$(call step,import directions)
	@$(BIN)/lint-imports --no-logo --no-cache

types: $(VENV)/.dev  ## Types alone
	$(call step,types)
	@$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev  ## Build the documentation into site/, strictly
	$(call step,docs)
	@$(BIN)/mkdocs build --strict --quiet

serve: $(VENV)/.dev  ## Read the documentation at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

format: $(VENV)/.dev  ## Format, and fix what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the environment and caches; data, models and runs stay
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis

# A stamp is newer than what it was made of: a second call installs nothing.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "misotune needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.created constraints.txt pyproject.toml
	$(INSTALL) .
	@touch $@

$(VENV)/.dev: $(VENV)/.created constraints.txt pyproject.toml
	$(INSTALL) '.[dev,docs]'
	@touch $(VENV)/.runtime $@
