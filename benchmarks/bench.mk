# Benchmarks and load tests, included by the Makefile. Their tools have a virtual environment of their own: Locust's
# greenlet is newer than httpbin, which the tests use, allows.
.PHONY: bench load load-wrk

# Another Python has an environment of its own: make bench BENCH_VENV=.venv-bench-3.14 BENCH_PYTHON=python3.14
BENCH_VENV ?= .venv-bench
# Debian's Python where it is there, as in the container image, and as the peers are Debian's: it is built with
# profile-guided optimisation, and a Python without it takes 1.17 times as long for a miss.
BENCH_PYTHON ?= $(shell /usr/bin/python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo $(PYTHON))

$(BENCH_VENV)/ready: pyproject.toml benchmarks/bench.mk
	$(BENCH_PYTHON) -m venv --clear $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install -q --disable-pip-version-check --upgrade "pip>=25.1"
	$(BENCH_VENV)/bin/python -m pip install -q --disable-pip-version-check -e . --group bench
	touch $(BENCH_VENV)/ready

# The gateway beside its peers on one core, and the tables of README.md and docs/performance.md. QUICK=1 for one short
# round, printed only; ROWS=hit,304 for some rows; ROUNDS=5 instead of 9.
bench: $(BENCH_VENV)/ready
	$(BENCH_VENV)/bin/python -m benchmarks $(if $(QUICK),--quick) $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS))

# A shopping app's requests for any URL: make load URL=http://127.0.0.1:8000
load: $(BENCH_VENV)/ready
	$(if $(URL),,$(error name what to ask: make load URL=http://127.0.0.1:8000))
	SESSION=$(SESSION) $(BENCH_VENV)/bin/locust -f loadtests/locustfile.py --headless --only-summary --host $(URL) -u $(or $(USERS),50) -r $(or $(USERS),50) -t $(or $(TIME),30s)

load-wrk:
	$(if $(URL),,$(error name what to ask: make load-wrk URL=http://127.0.0.1:8000))
	wrk -t1 -c$(or $(CONNECTIONS),32) -d$(or $(TIME),10s) -s loadtests/session.lua $(URL) -- $(or $(SESSION),loadtests/session.txt)
