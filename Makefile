PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: run test integration check conformance docs
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e . --group dev
	touch .venv/ready

run: .venv/ready
	$(BIN)/python -m demo

test: .venv/ready
	$(BIN)/python -m pytest tests --ignore tests/integration $(ARGS)

check: .venv/ready
	$(BIN)/ruff check gateway demo conformance
	$(BIN)/mypy gateway

conformance: .venv/ready
	$(BIN)/python conformance/run.py

docs: .venv/ready
	$(BIN)/python -m gateway.reference

integration: .venv/ready
	$(BIN)/python -m pytest tests/integration $(ARGS)
