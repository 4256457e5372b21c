# mis_lab: `make quickstart` and `make test` need Python >= 3.11 and make; everything else they install into .venv.

PYTHON ?= python3
ARGS ?=

VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
UV := $(BIN)/uv
LOCK := requirements.lock
READY := $(VENV)/.ready
LOWEST_READY := $(LOWEST)/.ready

# One worker a core and one thread a worker: tests are many and small. A file stays on one worker, so that what it
# sets up is set up once. A worker that dies ends the session: replacing it hangs now and then.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --max-worker-restart 0

.DEFAULT_GOAL := help
.PHONY: help env quickstart test test-full test-lowest lint lock wheel clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

env: $(READY) ## the environment in .venv, from requirements.lock

# Made anew when the lock changes: what is installed is what the lock says, no more.
$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ;]*\).*/\1/p' $(LOCK))"
	$(UV) pip install --quiet --python $(BIN)/python -r $(LOCK)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: $(READY) ## the whole laboratory at small size: make quickstart ARGS="seed=1"
	$(BIN)/mis-lab experiment=quickstart $(ARGS)

test: $(READY) ## the tests, without the slow ones: make test ARGS="-k store"
	$(PYTEST) -m "not slow" $(ARGS)

test-full: $(READY) ## all tests
	$(PYTEST) $(ARGS)

# The lowest versions that pyproject.toml admits, chosen when installed. What these need themselves is the newest, and
# old beside new warns: warnings are errors in `make test` only.
$(LOWEST_READY): $(READY) pyproject.toml
	$(UV) venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(UV) pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --group test -r pyproject.toml
	$(UV) pip install --quiet --python $(LOWEST)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

test-lowest: $(LOWEST_READY) ## the unit tests at the lowest supported versions
	$(subst $(BIN),$(LOWEST)/bin,$(PYTEST)) -W default --disable-warnings -m "not slow" tests/unit tests/test_conf.py tests/test_layering.py $(ARGS)

lint: $(READY) ## ruff
	$(BIN)/ruff check .

# What still fits stays; make lock ARGS=--upgrade takes the newest of everything.
lock: $(READY) ## requirements.lock from pyproject.toml
	$(UV) pip compile pyproject.toml --quiet --group dev --universal --python-version 3.11 --no-annotate --custom-compile-command "make lock" --output-file $(LOCK) $(ARGS)

wheel: $(READY) ## dist/mis_lab-*.whl, with conf inside
	$(BIN)/python -m hatchling build --target wheel --directory dist

clean: ## environments, caches and dist; runs and the store stay
	rm -rf $(VENV) $(LOWEST) dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find mis_lab tests examples benchmarks experiments -name __pycache__ -type d -prune -exec rm -rf {} +
