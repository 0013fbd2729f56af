# Everything runs from .venv, which is made from requirements.lock on first use. PYTHON chooses the interpreter (>= 3.11).
PYTHON ?= python3
BIN := .venv/bin
# Tests run in a process for each core, up to so many; those of one file in one process, for they share what they build.
TEST_PROCESSES ?= 8
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses $(TEST_PROCESSES) --dist loadfile
INSTALLED := .venv/.installed
EXTRAS := .venv/.extras-installed

.PHONY: install demo test test-all check format lock bench-peers fuzz bounds clean

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python {v.major}.{v.minor} found, 3.11 or newer needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(EXTRAS): $(INSTALLED) requirements-extras.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -r requirements-extras.lock
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

# At its end it lists the errors of ours that no test has made.
test-all: $(EXTRAS)
	$(PYTEST) --raised=build/raised.txt

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Resolves pyproject.toml afresh and writes what was installed; read the diff before committing it.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --disable-pip-version-check --quiet setuptools ".[dev]"
	{ sed -n '/^#/p' requirements.lock; \
	  build/lock/bin/python -m pip freeze --all | grep -v -E '^(#|-e|pip==|iianet-shards)' \
	    | sed 's/+cpu$$//' | grep -v -E '^(nvidia|cuda|triton)'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock
	build/lock/bin/python -m pip install --disable-pip-version-check --quiet ".[ray,metrics]"
	{ sed -n '/^#/p' requirements-extras.lock; \
	  build/lock/bin/python -m pip freeze --all | grep -v -E '^(#|-e|pip==|iianet-shards|nvidia|cuda|triton)' \
	    | sed 's/+cpu$$//' | grep -v -x -F -f requirements.lock; } > build/requirements-extras.lock
	mv build/requirements-extras.lock requirements-extras.lock

# The environment of benchmarks/loading.py: the project, and the peers that it is compared with.
bench-peers: build/peers-venv/.installed

build/peers-venv/.installed: requirements.lock benchmarks/peers-requirements.txt
	rm -rf build/peers-venv && $(PYTHON) -m venv build/peers-venv
	build/peers-venv/bin/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	build/peers-venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -r benchmarks/peers-requirements.txt
	build/peers-venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Coverage-guided fuzzing of each parser, FUZZ_SECONDS long, in an environment of its own.
FUZZ_SECONDS ?= 300
FUZZ := build/fuzz-venv

fuzz: $(FUZZ)/.installed
	for parser in npy npz tar record index plan lists config; do \
	  $(FUZZ)/bin/python benchmarks/fuzz.py $$parser -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=4000 -timeout=20 || exit 1; done

$(FUZZ)/.installed: requirements.lock
	rm -rf $(FUZZ) && $(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip install --disable-pip-version-check --quiet -r requirements.lock atheris==3.0.0
	@touch $@

# The tests with the lowest versions that pyproject.toml allows, and with the newest; see benchmarks/bounds.py.
bounds:
	$(PYTHON) benchmarks/bounds.py

clean:
	rm -rf .venv build demo Experiments *.egg-info .pytest_cache .mypy_cache .ruff_cache
