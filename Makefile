# The first Python of these that is there and new enough.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Another Python has an environment of its own: make VENV=.venv-3.14 PYTHON=python3.14 test
VENV ?= .venv
BIN := $(VENV)/bin
SLOW := tests/integration tests/faults tests/shared_caches
UNIT ?= tests
# Tests are parted between two processes; one that is done takes of the other's.
PARALLEL := -n 2 --dist worksteal

# Compiled modules are kept: all tests are imported by each of the processes that run them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: release conformance-table run test unit integration faults torture check conformance coverage own-coverage lowest mutants docs constraints

$(VENV)/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "The gateway needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q --disable-pip-version-check --constraint constraints.txt -e . --group dev
	touch $(VENV)/ready

# The demo: a slow shop and the gateway in front of it.
run: $(VENV)/ready
	$(BIN)/gateway demo

# All tests, in four processes, as those with real processes wait more than they compute; ARGS goes to pytest, such as
# ARGS="-k purge -x" or ARGS=--scale=full. A loaded machine is slow, not broken: a test may take five minutes, and what
# fails beside others runs once more, alone, and must pass then. A run that pytest did not finish has failed (status 3).
test: $(VENV)/ready
	$(BIN)/python -m pytest tests -n 4 --dist worksteal --timeout 300 $(ARGS) || { status=$$?; \
		[ $$status = 1 ] || exit $$status; \
		echo "What failed beside others runs once more, alone:"; \
		$(BIN)/python -m pytest tests --last-failed --last-failed-no-failures none --timeout 300 $(ARGS); }

# The quick ones: what to run while working. ARGS="-n 0 -x" for one process, ARGS=--random-order for another order.
unit: $(VENV)/ready
	$(BIN)/python -m pytest $(UNIT) $(SLOW:%=--ignore %) $(PARALLEL) $(ARGS)

# Those with real processes alone.
integration: $(VENV)/ready
	$(BIN)/python -m pytest tests/integration $(ARGS)

faults: $(VENV)/ready
	$(BIN)/python -m pytest tests/faults $(ARGS)

# The rows of docs/reliability.md at full length; ARGS="--soak 1h" for the soak.
torture: $(VENV)/ready
	$(BIN)/python -m tests.faults.torture $(ARGS)

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The public suite of HTTP caches, against the results that are expected.
conformance: $(VENV)/ready
	$(BIN)/python conformance/run.py

conformance-table: $(VENV)/ready
	$(BIN)/python conformance/run.py --table docs/conformance.md

# The unit tests with line and branch coverage, held by tests/coverage_floor.py.
coverage: $(VENV)/ready
	$(BIN)/python -m pytest tests $(SLOW:%=--ignore %) $(PARALLEL) --cov --cov-report= $(ARGS)
	$(BIN)/python -m tests.coverage_floor

# Each module of http and policy is run whole by its own file of tests alone; ARGS="headers target" for some of them.
own-coverage: $(VENV)/ready
	$(BIN)/python -m tests.own_coverage $(ARGS)

# The lowest versions that pyproject.toml allows, in an environment of their own; the tools are those of constraints.txt.
.venv-lowest/ready: pyproject.toml $(VENV)/ready
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv-lowest
	VIRTUAL_ENV=$(CURDIR)/.venv-lowest $(BIN)/uv pip install -q --resolution lowest-direct -e .
	grep -E '^(pytest|hypothesis|schemathesis|execnet)' constraints.txt > .venv-lowest/tools.txt
	VIRTUAL_ENV=$(CURDIR)/.venv-lowest $(BIN)/uv pip install -q --constraint .venv-lowest/tools.txt -e . --group dev
	touch .venv-lowest/ready

# The unit tests with the lowest versions, and a worker as it is run.
LOWEST ?= tests/unit tests/integration/test_process.py tests/integration/test_redis_failures.py
lowest: .venv-lowest/ready
	.venv-lowest/bin/python -m pytest $(LOWEST) $(PARALLEL) --timeout 300 $(ARGS)

# Central lines of policy broken one by one, each seen to turn a test red.
mutants: $(VENV)/ready
	$(BIN)/python -m tests.mutants $(ARGS)

# The reference pages of docs/, made from the code, and the tables of figures, made from benchmarks/results.
docs: $(VENV)/ready
	$(BIN)/python -m docs.generate_reference
	$(BIN)/python -m benchmarks.pages
	$(BIN)/python -m tests.shared_caches.table

# The exact versions of all packages, for every Python, without where they were downloaded from. ARGS=--upgrade for
# the newest ones.
constraints: $(VENV)/ready
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	sed -i '/^#/d' constraints.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --group dev pyproject.toml --output-file constraints.txt $(ARGS)
	sed -i '1i # The exact versions that are tested, by Python version; made by `make constraints`.' constraints.txt

# A release, as a dry run: version, changelog, tests, sdist, wheel, bill of materials. ARGS=--tag makes it.
release: $(VENV)/ready
	@test -n "$(VERSION)" || { echo "Name the version: make release VERSION=0.2.0" >&2; exit 1; }
	$(BIN)/python deploy/release.py $(VERSION) $(ARGS)

include benchmarks/bench.mk
