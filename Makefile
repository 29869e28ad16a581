# Thin front of the build: pip (scikit-build-core, csrc/CMakeLists.txt) does the work.
# A fresh clone needs python3 (3.10 or newer), a C compiler and make; the rest comes into .venv.
#
#   make bench   what an all-reduce and an all-gather cost on this machine, within a minute
#   make test    Python and C tests            make asan, make tsan   C tests under sanitizers
#   make lint    style, types, formatting      make stress            long C tests
#   make format  formats all sources           make stub              jetstream/_native.pyi anew
#   make package the wheel, by way of the source distribution, tried in a fresh environment
#   make torch   torch into .venv: without it the tests of jetstream.torch are left out
#   make clean   removes everything that make has made

PYTHON ?= python3
BENCH_ARGS ?= all_reduce all_gather -n 2 --quick
PYTEST_ARGS ?=
# Only a build for CPUs has this version; any other would bring gigabytes for CUDA with it.
TORCH ?= torch==2.13.0+cpu
CTEST_ARGS ?=
CTEST_SKIP ?=

VENV := .venv
BIN := $(VENV)/bin
BUILD := build
CC_NAME := $(notdir $(firstword $(CC)))
C_DIRS := csrc tests/c tests/device tests/model tests/stress examples bench
C_FILES = $(shell find $(C_DIRS) -name '*.[ch]' 2>/dev/null)
NATIVE := pyproject.toml $(shell find csrc -type f -not -path '*/__pycache__/*')
CLANG_FORMAT := $(shell command -v clang-format-14 2>/dev/null)
CLANG_FORMAT_RUN = $(CLANG_FORMAT) --style=file:csrc/.clang-format

# Installs within .venv rebuild in place; warnings are errors here, though not for those who
# install jetstream with another compiler than ours.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export SKBUILD_BUILD_DIR := $(BUILD)/native
export SKBUILD_CMAKE_DEFINE := JS_WERROR=ON

.PHONY: bench test lint format stub package ctest stress asan tsan install torch clean
.DELETE_ON_ERROR:

bench: install
	$(BIN)/jetstream bench $(BENCH_ARGS)

test: install ctest
	$(BIN)/pytest $(PYTEST_ARGS)

# --- the environment ---------------------------------------------------------------------------
install: $(VENV)/.installed

$(VENV)/.tools:
	@echo 'setting up $(VENV), once'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq 'scikit-build-core>=0.11' 'cffi>=1.17' cmake ninja
	touch $@

$(VENV)/.installed: $(VENV)/.tools $(NATIVE)
	@echo 'building jetstream'
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install -qq --no-build-isolation -e '.[test,lint]'
	touch $@

# What is imported gets compiled then: to compile all of torch takes as long as to install it.
torch: install
	$(BIN)/pip install -qq --no-compile '$(TORCH)' expecttest || { \
	    echo 'make torch: name a build that pip finds, e.g. make torch TORCH=torch==2.13.0'; exit 1; }
	$(BIN)/python -c 'import torch; print("torch", torch.__version__)'

# --- style ---------------------------------------------------------------------------------------
# mypy sees the packages where they are once installed: transport/ as jetstream.transport.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	rm -rf $(BUILD)/typetree && mkdir -p $(BUILD)/typetree/jetstream
	ln -s $(CURDIR)/jetstream/* $(CURDIR)/transport $(CURDIR)/collectives $(BUILD)/typetree/jetstream
	cd $(BUILD)/typetree && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml \
	    --cache-dir $(CURDIR)/$(BUILD)/mypy -p jetstream
	$(BIN)/mypy csrc/ffi/build_native.py csrc/ffi/gen_pyi.py
ifneq ($(CLANG_FORMAT),)
	$(CLANG_FORMAT_RUN) --dry-run -Werror $(C_FILES)
else
	@echo 'lint: no clang-format-14 here: formatting of C not checked'
endif

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CLANG_FORMAT),$(CLANG_FORMAT_RUN) -i $(C_FILES))

stub: install
	$(BIN)/python csrc/ffi/gen_pyi.py > $(BUILD)/_native.pyi
	mv $(BUILD)/_native.pyi jetstream/_native.pyi

# --- tests in C ----------------------------------------------------------------------------------
# $(call c_tests,FOLDER,CMAKE OPTIONS,CTEST OPTIONS)
define c_tests
	$(abspath $(BIN))/cmake -S csrc -B $(BUILD)/$(1) -G Ninja \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DJS_TESTS=ON -DJS_WERROR=ON $(2) >/dev/null
	$(BIN)/cmake --build $(BUILD)/$(1) -- --quiet
	$(BIN)/ctest --test-dir $(BUILD)/$(1) -j2 --output-on-failure --no-tests=error $(3) \
	    $(if $(CTEST_SKIP),-E '$(CTEST_SKIP)') $(CTEST_ARGS)
endef

ctest: $(VENV)/.tools
	$(call c_tests,c-$(CC_NAME),,-LE stress)

stress: $(VENV)/.tools
	$(call c_tests,c-$(CC_NAME),,-L stress)

asan: $(VENV)/.tools
	$(call c_tests,asan-$(CC_NAME),-DCMAKE_BUILD_TYPE=Debug -DJS_SAN=address,-LE stress)

tsan: $(VENV)/.tools
	$(call c_tests,tsan-$(CC_NAME),-DCMAKE_BUILD_TYPE=Debug -DJS_SAN=thread,)

# --- what users get ------------------------------------------------------------------------------
package: $(VENV)/.tools
	rm -rf $(BUILD)/dist $(BUILD)/try
	$(BIN)/python -c 'from scikit_build_core.build import build_sdist; build_sdist("$(BUILD)/dist")'
	env -u SKBUILD_BUILD_DIR -u SKBUILD_CMAKE_DEFINE $(BIN)/pip wheel -qq --no-deps \
	    -w $(BUILD)/dist $(BUILD)/dist/*.tar.gz
	$(PYTHON) -m venv --without-pip $(BUILD)/try
	$(BIN)/pip --python $(BUILD)/try/bin/python install -qq --no-compile $(BUILD)/dist/*.whl
	cd / && $(abspath $(BUILD)/try)/bin/jetstream info
	ls $(BUILD)/dist

clean:
	rm -rf $(VENV) $(BUILD) dist .benchmarks .hypothesis .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
