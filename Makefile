# make demo | make test | make check: each makes .venv first, on a machine that has only Python >= 3.10 and make.
#   PYTHON=python3.12         the interpreter that a new .venv is made with
#   TORCH_INDEX=https://...   one more package index for PyTorch, such as the CPU-only builds (`make help` shows it)
#   PIP_ARGS="..."            more arguments for every pip install, such as --no-index --find-links wheels
#   WORKERS=8                 parallel test processes
PYTHON ?= python3
TORCH_INDEX ?=
PIP_ARGS ?=
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.docs
PIP_LOUD := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt $(PIP_ARGS)
PIP := $(PIP_LOUD) --quiet
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
PACKAGES := build/packages
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help demo test test-all check lint types doctests gates docs clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "CPU-only PyTorch on Linux: make test TORCH_INDEX=https://download.pytorch.org/whl/cpu"

demo: $(STAMP)  ## Unsteered, best of K and steered images on the embedded model; writes outputs/demo
	$(BIN)/fk-reward demo --out outputs/demo

# many tests start processes: bytecode is kept. Files in the order of tests/conftest.py: the slow ones first
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(STAMP)  ## All tests but those that are marked as long
	$(PYTEST) -m "not long" tests

test-all: $(STAMP)  ## All tests, before a release: whole trainings in small, every notebook, every pipeline of the table
	$(PYTEST) tests

check: lint types doctests gates  ## Lint, types, doctests, exports and documentation

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/python scripts/link_packages.py
	MYPYPATH=$(PACKAGES) $(BIN)/mypy -p fk_reward

doctests: $(STAMP)
	$(BIN)/python scripts/link_packages.py
	PYTHONPATH=$(PACKAGES) $(BIN)/python -m pytest -q -n $(WORKERS) --doctest-modules --import-mode=importlib $(PACKAGES)/fk_reward

gates: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow" tests/repository

docs: $(DOCS_STAMP)  ## The documentation as a site with search, in build/docs; offline
	$(BIN)/python scripts/link_packages.py
	PYTHONPATH=$(PACKAGES) $(BIN)/python -m sphinx -W --keep-going --quiet docs build/docs
	@echo "build/docs/index.html"

clean:  ## Remove .venv and everything that was built
	rm -rf .venv build dist outputs *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'fk-reward needs Python >= 3.10: make PYTHON=...')"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Setting up .venv, once; nothing is installed outside it."
	@echo "1 of 2: PyTorch ($(TORCH)): 200 MB to download for CPUs alone, 3 GB with CUDA"
	@$(PIP) setuptools
	@$(PIP_LOUD) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH)
	@echo "2 of 2: Diffusers, transformers and this package: 300 MB, one to three minutes"
	@$(PIP) --no-build-isolation -e ".[dev,train]"
	@touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(PIP) --no-build-isolation -e ".[docs]"
	@touch $(DOCS_STAMP)
