# build, test, lint and demo all work from a fresh clone: they make .venv and build what they need.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
BUILD  := build/py
# The full torch wheel brings several GB of CUDA; give pip a CPU index in TORCH_ARGS where there is one.
TORCH      ?= torch==2.13.0
TORCH_ARGS ?=
CMAKE_FLAGS ?=

.PHONY: build test lint demo clean

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q cmake ninja scikit-build-core
	CMAKE_ARGS=-DLLAMA_BUILD=OFF $(PY) -m pip install -q --no-cache-dir llama-cpp-python==0.3.36
	touch $@

build: $(VENV)/ready
	CMAKE_ARGS="$(CMAKE_FLAGS)" $(PY) -m pip install -q --no-build-isolation -Ccmake.define.HALFV_BUILD_TESTS=ON -e .

$(VENV)/ready-tests: $(VENV)/ready
	$(PY) -c "import torch" 2>/dev/null || $(PY) -m pip install -q $(TORCH_ARGS) $(TORCH)
	$(PY) -m pip install -q pytest hypothesis gguf ruff
	touch $@

test: build $(VENV)/ready-tests
	$(VENV)/bin/cmake --build $(BUILD) --target halfv-tests
	$(PY) -m pytest

lint: $(VENV)/ready-tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

demo: build
	$(PY) -m halfv_edge info
	@echo "The demo model is not part of the project yet, so there is nothing more to show."

clean:
	rm -rf build $(VENV)
