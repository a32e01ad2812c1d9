# Every target works alone on a fresh clone: it makes $(VENV), installs pinned requirements, builds
# the native libraries and then does its job. `make PYTHON=/path/to/python` chooses the interpreter;
# if that one already has torch >= 2.10, it is used instead of a second download.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
PARALLEL ?= --numprocesses=auto --dist=worksteal
BENCH_ARGS ?=
BENCHMARKS ?= depthwise norm separable aspp decoder upsample
BUDGET_ARGS ?=
PARTS ?= parity sanitize dispatch bench layers

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PINS := $(VENV)/pins.txt
CSRC := $(wildcard csrc/*/*)
NATIVE_SOURCES := $(wildcard CMakeLists.txt setup.py pyproject.toml) $(CSRC)

# What the tests and the budget are about: every architecture, where an editable install builds one.
ARCHITECTURES ?= 8.0;8.6;8.9;9.0a;10.0;12.0+PTX

BASE := torch numpy setuptools wheel cmake ninja
TRAIN := pillow tqdm matplotlib

# cmake and ninja are found in the environment first.
export PATH := $(abspath $(BIN)):$(PATH)

.DELETE_ON_ERROR:
.PHONY: help demo test peers lint bench budget gpu-check wheel clean distclean

help:
	@echo "make demo       build, train a DeepLabv3+ on the sample, pictures in demo-output/"
	@echo "make test       build and run the test suite; PYTEST_ARGS='-k depthwise' selects"
	@echo "make peers      the tests of dk.accelerate on models of other packages, which it installs aside"
	@echo "make lint       ruff, clang-format, source rules, mypy"
	@echo "make bench      time the kernels against stock PyTorch, into benchmarks/results/; BENCH_ARGS=--quick, BENCHMARKS=aspp"
	@echo "make budget     registers, memory, access widths of the GPU kernels; BUDGET_ARGS=--check compares"
	@echo "make gpu-check  on a GPU machine, offline, with PYTHON as it is; PARTS='parity bench' selects"
	@echo "make wheel      build and check dist/*.whl"
	@echo "make clean      remove what was built; distclean also removes $(VENV)"
	@echo "variables       PYTHON=$(PYTHON)  VENV=$(VENV)  DLV3P_CUDA=auto|0|1  MAX_JOBS=n"
	@echo "                ARCHITECTURES='$(ARCHITECTURES)' of make test and make budget"

demo: $(VENV)/.train $(VENV)/.native
	$(BIN)/python -m deeplabv3plus.demo --output demo-output

# As many processes as cores, each with one thread unless a test asks for more. Tests of the kernels
# fail, instead of being skipped, where the libraries did not build.
test: export DLV3P_REQUIRE_NATIVE := 1
test: $(VENV)/.dev $(VENV)/.native-all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

# Minutes; the packages lie in build/peers, so that the environment stays what is pinned.
peers: $(VENV)/.dev $(VENV)/.native
	$(PIP) install -q --no-deps --upgrade --target build/peers -r tests/peers/requirements.txt
	PYTHONPATH=build/peers:$$PYTHONPATH $(BIN)/python -m pytest tests/peers $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_sources.py
	$(BIN)/clang-format --dry-run -Werror $(CSRC)
	$(BIN)/python -m mypy

bench: $(VENV)/.native
	for op in $(BENCHMARKS); do \
	  $(BIN)/dlv3p bench $$op --output benchmarks/results $(BENCH_ARGS) || exit 1; \
	done
	$(BIN)/dlv3p bench --summary benchmarks/results/cpu

budget: $(VENV)/.dev $(VENV)/.native-all
	$(BIN)/python tools/kernel_budget.py $(BUDGET_ARGS)

# Installs nothing and makes no environment: what PYTHON is outside of $(VENV) does it all.
gpu-check: export PATH := $(subst $(abspath $(BIN)):,,$(PATH))
gpu-check: export PYTHONPATH := $(CURDIR):$(CURDIR)/benchmarks:$(PYTHONPATH)
gpu-check:
	$(PYTHON) -m gpu_check $(PARTS)

wheel: $(VENV)/.dev
	rm -rf dist build/wheel build/lib* build/bdist*
	$(PIP) wheel -q --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(BIN)/auditwheel repair --exclude 'libtorch*.so' --wheel-dir dist build/wheel/*.whl
	$(BIN)/python tools/check_wheel.py dist/*.whl

clean:
	rm -rf build dist dlv3p_kernels/lib demo-output *.egg-info python/*.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache .benchmarks $(VENV)/.native*

distclean: clean
	rm -rf $(VENV)

$(PINS): requirements-dev.txt tools/make_venv.py
	$(PYTHON) tools/make_venv.py $(VENV)

$(VENV)/.base: $(PINS)
	$(PIP) install -q -c $(PINS) $(BASE)
	@touch $@

$(VENV)/.train: $(VENV)/.base
	$(PIP) install -q -c $(PINS) $(TRAIN)
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -q -r $(PINS)
	@touch $@

$(VENV)/.native: $(VENV)/.base $(NATIVE_SOURCES)
	$(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.native-all: $(VENV)/.base $(NATIVE_SOURCES)
	TORCH_CUDA_ARCH_LIST="$(ARCHITECTURES)" $(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@ $(VENV)/.native
