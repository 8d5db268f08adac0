# `make serve` and `make test` work on a fresh clone with Python 3.11+, pip and make.
PYTHON ?= python3
PORT ?= 8000
MODEL ?= SmolLM2-135M-Instruct
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
CSRC := server/engine/backends/native/csrc
CSRC_FILES := $(wildcard $(CSRC)/*/*.* $(CSRC)/*/*/*.*)

CLIENTS := .venv-clients
INSTALLED_CLIENTS := $(CLIENTS)/.installed

.PHONY: install serve test test-fast test-arm test-clients clients lint docs screenshots sanitize bench gpu-check artefact clean

install: $(INSTALLED)

serve: $(INSTALLED)
	$(BIN)/trimtab serve --model "$(MODEL)" --port $(PORT)

# One thread: for tiny models more threads only wait for each other, ten times as long on a busy machine.
# Without the client libraries (`make clients`, 2 GB) their tests are skipped.
test: $(INSTALLED_DEV)
	$(BIN)/trimtab pull
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# The quick loop: all but tests that are marked slow or browser; they need no model and no network.
test-fast: $(INSTALLED_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not browser"

# The kernels for 64-bit ARM, built by Debian's g++-aarch64-linux-gnu, under its qemu-user-static.
ARM_CXX ?= aarch64-linux-gnu-g++
CHECK_VECTORS := tests/server/engine/backends/native/check_vectors.cpp
ARM_OBJECTS := $(patsubst %.cpp,build/arm/%.o,$(CHECK_VECTORS) $(filter %.cpp,$(CSRC_FILES)))
build/arm/%.o: %.cpp $(CSRC_FILES)
	mkdir -p $(@D)
	$(ARM_CXX) -O3 -std=c++20 -Wall -Wno-psabi -I$(CSRC) -c $< -o $@

build/arm/check_vectors: $(ARM_OBJECTS)
	$(ARM_CXX) -static -pthread $^ -o $@

test-arm: $(INSTALLED_DEV) build/arm/check_vectors
	$(BIN)/python -m pytest -rs tests/server/engine/backends/native/test_vectors.py

# Real clients against a live server: five minutes more.
test-clients: $(INSTALLED_DEV) clients
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/clients

# The libraries of clients that tests/clients runs, in an environment of their own.
clients: $(INSTALLED_CLIENTS)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation in build/site; a broken link is an error.
docs: $(INSTALLED_DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The documentation's pictures of the page, with the default model and a headless Chromium.
screenshots: $(INSTALLED_DEV)
	$(BIN)/python -m tests.support.screenshots

# The native kernels' tests under the address and undefined-behaviour sanitizers.
sanitize: $(INSTALLED_DEV)
	mkdir -p build/sanitize
	$(CXX) -O1 -g -std=c++20 -shared -fPIC -fsanitize=address,undefined -fno-sanitize-recover=all \
		-Wno-psabi -Wno-ignored-attributes -Wno-maybe-uninitialized -Wno-unknown-warning-option \
		-I$(CSRC) $(filter %.cpp,$(CSRC_FILES)) -o build/sanitize/native.so
	ASAN_OPTIONS=detect_leaks=0 TRIMTAB_NATIVE=build/sanitize/native.so \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest tests/server/engine/backends/native

# LLAMA="--llama-cpp FOLDER" adds llama.cpp's programs to the comparison.
bench: $(INSTALLED_DEV)
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.head
	$(BIN)/python -m benchmarks.engine $(LLAMA)
	$(BIN)/python -m benchmarks.variants
	$(BIN)/python -m benchmarks.streams $(LLAMA)
	$(BIN)/python -m benchmarks.front_end
	$(BIN)/python -m benchmarks.burst
	$(BIN)/python -m benchmarks.controller
	$(BIN)/python -m benchmarks.shadow

# All that there is to measure on a GPU, in under 8 minutes.
gpu-check: $(INSTALLED_DEV)
	$(BIN)/python -m benchmarks.gpu_check

# The shipped variants of the default model, from nothing but the model: half an hour on two cores to
# build, an hour and a half to train. With a GPU longer, and low ranks beside all projections:
#   make artefact RECOVER="--device cuda --tier lora --tokens 12000000 --batch 16384"
# PROMPTS=FILE also trains the readers on the base's answers to real prompts (hours), and learns
# what each variant loses on them (ten minutes).
SHIPPED := pruners/shipped/smollm2-135m-instruct
RECOVER ?= --tokens 163840
artefact: $(INSTALLED)
	$(BIN)/trimtab build --out $(SHIPPED)
	$(BIN)/trimtab recover --artefact $(SHIPPED) $(RECOVER)
	$(if $(PROMPTS),$(BIN)/trimtab readers --artefact $(SHIPPED) --prompts $(PROMPTS) --distil 3)
	$(if $(PROMPTS),$(BIN)/trimtab sensitivity --artefact $(SHIPPED) --prompts $(PROMPTS))

clean:
	rm -rf $(VENV) $(CLIENTS) build *.egg-info

# torch first and exact: a range would bring gigabytes of CUDA to a machine without a GPU.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/bin/python pyproject.toml constraints.txt $(CSRC_FILES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(INSTALLED_CLIENTS): tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	touch $@
