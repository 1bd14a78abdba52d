# Every target creates .venv from the lock file on first use.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.locked

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## *(.*)/  make \1\t\2/' | expand -t 20

# With uv if it is there and its index has everything, else with pip, which says each package as it comes.
$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is required, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "creating .venv from requirements-dev.lock: $$(grep -c '==' requirements-dev.lock) packages, once, about a minute"
	@$(PYTHON) -m venv .venv
	@if command -v uv >/dev/null && uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements-dev.lock 2>.venv/uv.log; then \
	  echo "  installed by uv"; \
	else \
	  set -o pipefail; \
	  $(BIN)/python -m pip install --progress-bar off --disable-pip-version-check --require-hashes -r requirements-dev.lock 2>&1 | tee .venv/pip.log | \
	    awk '/^Collecting/ {n++; printf "\r  %3d found: %-50.50s", n, $$2; fflush()} /^Installing/ {printf "\r  %3d found, installing them %-30s\n", n, ""; fflush()}' || \
	    { echo; grep -iE '^error|^warning: retry' .venv/pip.log | tail -5; echo "the packages could not be installed; the whole log is .venv/pip.log"; exit 1; }; \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

venv: $(STAMP)  ## create .venv from the lock file

demo: $(STAMP)  ## the whole pipeline on this machine, on calls written for this project
	@$(BIN)/yyc3 demo

up: $(STAMP)  ## everything on this machine, with simulated engines, until Ctrl-C
	@$(BIN)/yyc3 up --simulate

test: $(STAMP)  ## every test, on real Valkey, Postgres and Celery workers, in three processes
	@PYTHONOPTIMIZE= PYTHONWARNINGS= $(BIN)/python -m pytest -n 3 --dist loadfile

test-vllm: $(STAMP)  ## contract tests against a real vLLM: YYC3_TEST_VLLM_URL=http://127.0.0.1:18086 make test-vllm
	@test -n "$$YYC3_TEST_VLLM_URL" || { echo "set the URL of a running vLLM: YYC3_TEST_VLLM_URL=http://127.0.0.1:18086 make test-vllm"; exit 2; }
	@$(BIN)/python -m pytest tests/contract

check: $(STAMP)  ## format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

soak: $(STAMP)  ## twenty minutes of kills, suspensions, cuts, lies and restarts under load; the last line is the result
	@$(BIN)/python -m tests.faults.soak

fuzz: $(STAMP)  ## a million bad inputs for everything that parses what others wrote
	@$(BIN)/python -m tests.support.fuzz

bench: $(STAMP)  ## cost of a job, latency, streams, filling an engine, chat under bulk, failover (half an hour)
	@$(BIN)/python -m bench.bulk_cost
	@$(BIN)/python -m bench.interactive
	@$(BIN)/python -m bench.streaming
	@$(BIN)/python -m bench.engine_fill
	@$(BIN)/python -m bench.chat_under_bulk
	@$(BIN)/python -m bench.failover
	@$(BIN)/python -m bench.takeover
	@$(BIN)/python -m bench.growth --rows 1000000
	@$(BIN)/python -m bench.batch_scale --rows 10000,100000
	@$(BIN)/python -m bench.fairness

types: $(STAMP)  ## renew docs/schemas/ and the error table of docs/submitting.md
	@$(BIN)/yyc3 schema --out docs/schemas
	@$(BIN)/python -c 'from pathlib import Path; from schemas.published import with_error_table; page = Path("docs/submitting.md"); page.write_text(with_error_table(page.read_text("utf-8")), "utf-8")'

dist: $(STAMP)  ## build the wheel into dist/
	@rm -rf dist
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

lock: $(STAMP)  ## renew both lock files (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --extra all pyproject.toml -o requirements.lock
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --extra all --group dev pyproject.toml -o requirements-dev.lock

clean:  ## remove .venv and caches (data under YYC3_HOME stays)
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help venv demo up test test-vllm check soak fuzz bench types dist lock clean
