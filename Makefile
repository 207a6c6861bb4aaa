# make demo: install, then build the default recipe.  make test: lint, types and all tests.
# make quick: lint, types and the tests that start no worker, in about three minutes.

PYTHON ?= python3
# To avoid the CUDA build, set TORCH_INDEX to a package index with CPU builds of torch.
TORCH_INDEX ?=
# Free disk space that set-up asks for, in MB; by default what the build of torch needs.
SETUP_MB ?=
VENV := .venv
BIN := $(VENV)/bin

export DAGSTER_HOME := $(CURDIR)
export DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME := ft_pipeline.definitions
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo setup dev test quick lint types format schema readme docs accept-code clean

demo: setup
	@$(BIN)/ft-pipeline run

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt requirements-unsloth-cpu.txt setup.sh activate.sh
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' SETUP_MB='$(SETUP_MB)' sh setup.sh $(VENV)
	@touch $@

dev: setup
	$(BIN)/dagster dev --host 127.0.0.1 --port 3000

test: lint types
	$(BIN)/pytest -n 3 --dist worksteal

quick: lint types
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow" --durations=5

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The README's answer, figures and picture, from the built store of the default recipe.
readme: setup
	$(BIN)/python benchmarks/readme.py

# The documentation as site/, to be read from the disk: open site/index.html. A dead link fails.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

schema: setup
	$(BIN)/ft-pipeline recipe schema > recipes/schema.json
	$(BIN)/ft-pipeline recipe settings > docs/settings.md

# After changing code that an asset uses: raise its code_version in graph/asset_rules.py if its result
# changes, then run this to record the decision (docs/architecture.md).
accept-code: setup
	$(BIN)/python -m ft_pipeline_tests.code_versions

clean:
	rm -rf $(VENV) .dagster build site *.egg-info
