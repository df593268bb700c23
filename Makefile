# One entry for people and for automation. `make simulate` and `make test` do all the set-up they need.
#   make simulate ARGS="--quick"        make bench        make clean
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install lint type test simulate deploy-demo bench soak lock clean

# Nothing here reports home or asks the network once set-up is done.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TRANSFORMERS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

BIN := .venv/bin
INSTALLED := .venv/.installed
SCENARIO ?= emergency-triage
WORKERS ?= 2
UV ?= uv
ARGS ?=
FLOOR := shared/secagg/*,shared/privacy/*,policies/*

help: ## Say what each verb does.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): requirements/lock.txt requirements/install.sh pyproject.toml
	@requirements/install.sh

install: $(INSTALLED) ## Make .venv from the lock; quick when it is there already.

lint: $(INSTALLED) ## Check style, format and the layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(INSTALLED) ## Check types, strictly.
	$(BIN)/mypy

test: $(INSTALLED) ## Run the tests with branch coverage.
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --cov --cov-branch --cov-report= $(ARGS)
	$(BIN)/coverage report --skip-covered --skip-empty
	$(BIN)/coverage report --skip-covered --include='$(FLOOR)' --fail-under=90

soak: $(INSTALLED) ## Run the long tests that `make test` leaves out.
	$(BIN)/python -m pytest -m soak $(ARGS)

simulate: $(INSTALLED) ## Train the default scenario; SCENARIO=... and ARGS=... are passed on.
	$(BIN)/cityfed-sim setup
	$(BIN)/cityfed-sim run $(SCENARIO) $(ARGS)

deploy-demo: $(INSTALLED) ## Run the default scenario over real processes of one machine: authority and four departments.
	$(BIN)/cityfed-sim setup
	$(BIN)/python deploy/demo.py

bench: $(INSTALLED) ## Run every script in benchmarks/.
	for script in benchmarks/*.py; do $(BIN)/python "$$script" $(ARGS); done

lock: ## Compile requirements/lock.txt anew (needs uv).
	$(UV) pip compile pyproject.toml requirements/torch.in --extra dev --universal --python-version 3.11 \
	    --generate-hashes --override requirements/override.txt --no-emit-package torch --no-emit-index-url \
	    --no-header --quiet --output-file requirements/lock.txt

clean: ## Remove caches and build results; .venv, .cityfed and runs stay.
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
