# Every target sets up what it needs in .venv; a second call does nothing until pyproject.toml or
# requirements.lock change. Needs Python 3.11 or later, make, and a network the first time.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INPUTS := pyproject.toml requirements.lock $(BIN)/python

# Whatever the caller's shell has active (another virtual environment, a ROS or Conda set-up) stays out.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

# Where .venv's Python is gone (the system's was replaced), what was installed for it no longer counts.
$(shell [ -x $(BIN)/python ] || rm -f $(VENV)/.installed-*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart install install-llm install-sb3 install-ray install-envs test check lint format lock clean

help: ## print this list
	@echo 'usage: make TARGET [PYTHON=python3.12] [ARGS="..."]'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

quickstart: $(VENV)/.installed-base ## refine a policy that ships with the package, offline (ARGS go to ultra)
	$(BIN)/ultra quickstart $(ARGS)

install: $(VENV)/.installed-dev ## install ULTRA and the development tools into .venv

install-llm: $(VENV)/.installed-llm ## add what talks to language models

install-sb3: $(VENV)/.installed-sb3 ## add what reads and writes Stable-Baselines3 files (torch: large)

install-ray: $(VENV)/.installed-ray ## add what runs studies on a Ray cluster

install-envs: $(VENV)/.installed-envs ## add Box2D and MiniGrid, which some tests use

test: $(VENV)/.installed-dev ## run the tests (ARGS go to pytest)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

check: lint ## lint, and the fast tests (ARGS go to pytest)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow" $(ARGS)

lint: $(VENV)/.installed-dev ## check style, format, types and which package imports which
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## mend style and format where that can be done for you
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean: ## remove .venv, caches and build products (never results)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Known pins are kept where they still fit; ARGS=--upgrade asks for the newest of everything. One version
# serves all Pythons and platforms. The accelerator libraries that torch's Linux builds bring are left out:
# torch pins them itself, and its CPU builds do without.
lock: $(BIN)/python ## renew requirements.lock from pyproject.toml (ARGS=--upgrade: newest of everything)
	$(PIP) install --quiet uv
	@cp requirements.lock $(VENV)/lock 2>/dev/null || rm -f $(VENV)/lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --fork-strategy fewest \
		--no-header --no-annotate --quiet --output-file $(VENV)/lock $(ARGS) >/dev/null
	@{ echo '# Constraints for every dependency and extra (pip install -c). Do not edit: `make lock` writes this file.'; \
		grep -Ev '^(#|cuda-|nvidia-|triton=)' $(VENV)/lock; } >$(VENV)/lock.filtered
	@cmp -s $(VENV)/lock.filtered requirements.lock || cp $(VENV)/lock.filtered requirements.lock

$(BIN)/python:
	@command -v '$(PYTHON)' >/dev/null || { \
		echo 'error: no "$(PYTHON)" found; install Python 3.11 or later, or name it: make PYTHON=/path/to/python3.11' >&2; \
		exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$('$(PYTHON)' --version 2>&1), ULTRA needs Python 3.11 or later;" \
			'name another: make PYTHON=python3.11' >&2; \
		exit 1; }
	@'$(PYTHON)' -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

# $(1) is the extra in brackets, or nothing. The development install includes the base one.
define pip_install
	@echo 'Installing ULTRA$(1) into $(VENV); the first time takes a few minutes ...'
	@$(PIP) install --quiet -c requirements.lock -e '.$(1)'
	@touch $(VENV)/.installed-base $@
endef

$(VENV)/.installed-base: $(INPUTS)
	$(call pip_install,)

$(VENV)/.installed-dev: $(INPUTS)
	$(call pip_install,[dev])

$(VENV)/.installed-llm: $(INPUTS)
	$(call pip_install,[llm])

$(VENV)/.installed-envs: $(INPUTS)
	$(call pip_install,[envs])

$(VENV)/.installed-sb3: $(INPUTS)
	$(call pip_install,[sb3])

$(VENV)/.installed-ray: $(INPUTS)
	$(call pip_install,[ray])
