# Everything below works on a fresh machine with Python >= 3.10, make and a C++ compiler.
#
#   make demo       draw a picture, ask the embedded model about it, check the answer
#   make test       lint, then all tests
#   make lint       ruff and clang-format
#   make sanitize   the tests of the native code under ASan and UBSan
#   make bench      the benchmark against transformers, on a checkpoint with random weights
#   make clean      remove what these commands made
#
#   PYTHON=python3.12    the interpreter the virtual environment is made from
#   TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#                        what pip installs as torch; by default an installed torch is reused
#   TESTS=tests/cli      what `make test` runs
#   WORKERS=1            processes that run tests: by default one per processor, 4 at most; 0 is none
#                        beside pytest's own, as a debugger needs it
#   DEMO="--task read"   what else `make demo` passes on

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
TESTS ?= tests
WORKERS ?= logical
PARALLEL := --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
NATIVE := CMakeLists.txt setup.py $(shell find csrc -name '*.*' -type f 2>/dev/null)

# See "Threads" in README.md: workers that spin while they wait cost far more than they gain.
export OMP_WAIT_POLICY ?= passive

# cmake, ninja and the linters may have come with pip, here or beside the PYTHON that is reused.
export PATH := $(abspath $(VENV))/bin:$(dir $(shell command -v $(PYTHON))):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test lint sanitize bench clean

help:
	@sed -n 's/^#   make /make /p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.built
	$(RUN) -m pydstp demo --output build/demo.png $(DEMO)

test: lint $(VENV)/.built
	$(RUN) -m pytest -q $(PARALLEL) $(TESTS)

lint: $(VENV)/.dev
	ruff check --quiet --output-format concise .
	clang-format --dry-run -Werror $(filter %.h %.cpp %.cuh %.cu,$(NATIVE))

sanitize: $(VENV)/.dev
	tests/run_sanitized.sh $(RUN) $(PARALLEL)

bench: $(VENV)/.dev $(VENV)/.built
	mkdir -p build
	$(RUN) -m pydstp bench --shape qwen3-vl-2b --folder build --against transformers

clean:
	rm -rf $(VENV) build
	find pydstp -name '_C*.so' -delete

# The stamps: each names what the step before it has finished.

$(VENV)/.base: .ci/make_venv.py
	@echo 'setting up $(VENV): minutes the first time, nothing after that'
	$(PYTHON) .ci/make_venv.py $(VENV) --torch '$(TORCH)'
	@touch $@

$(VENV)/.installed: $(VENV)/.base pyproject.toml setup.py
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	$(RUN) setup.py --quiet build_ext --inplace
	@touch $@
