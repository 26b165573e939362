# Two commands, from a clean clone, with nothing but Python 3.11+, a C++ compiler and make:
#
#   make birds   paints eight birds for a caption with the shipped weights, into out/
#                make birds CAPTION="a small blue bird with a black bill"
#   make test    formatting, types and all tests but those that take minutes each
#
# Shorter, while working, and longer, before a release:
#
#   make check   formatting, types and the quickest tests, in about two minutes
#   make soak    the tests that take minutes each, and damaged files by the thousand
#
# And for work on the C++:
#
#   make sanitize   the tests of the CPU's kernels under the address and undefined-behaviour sanitizers,
#                   those for AMX too (with AVX-512's products of bfloat16): their tiles are emulated
#
# All work in .venv, which they set up on the first call and after a change of what is built or
# pinned. Another Python: make PYTHON=python3.12 birds

PYTHON ?= python3
VENV ?= .venv
export CAPTION ?= this bird has a yellow crown and a white belly

export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := $(VENV)/bin
BUILT_FROM := pyproject.toml setup.py constraints.txt \
              $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)
INSTALL := $(BIN)/python -m pip install -c constraints.txt

.PHONY: birds check test soak sanitize clean

birds: $(VENV)/installed
	$(BIN)/mirrorgan-fast sample "$$CAPTION" -n 8 -o out/ --overwrite

LINT := $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
# What neither starts processes nor trains for long.
QUICK := tests/test_imports.py tests/test_pictures.py tests/test_tensor_files.py tests/test_weights.py \
         tests/models/test_attngan.py tests/models/test_config.py tests/models/test_glam.py \
         tests/models/test_layers.py tests/models/test_mirrorgan.py tests/metrics \
         tests/inference/test_renderer.py tests/sampling/test_sampler.py \
         tests/training/test_learner.py tests/training/test_objectives.py

# One process for each core, up to four: each holds PyTorch and a model.
SHARED := -n auto --maxprocesses 4 --dist loadfile

check: $(VENV)/installed-dev
	$(LINT)
	$(BIN)/pytest $(SHARED) $(QUICK)

test: $(VENV)/installed-dev
	$(LINT)
	$(BIN)/pytest $(SHARED)

soak: $(VENV)/installed-dev
	$(BIN)/pytest -m slow
	$(BIN)/python -m tests.fuzz

# In a copy, for what is installed stays as it is. The sanitizer finds exceptions only in a C++ library loaded before
# it; leaks are PyTorch's own, of what lives as long as the process. (nvcc itself does not run under it.)
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: $(VENV)/installed-dev
	rm -rf build/sanitized
	mkdir -p build/sanitized
	cp -r benchmarks csrc kernels mirrorgan_fast tests pyproject.toml setup.py README.md build/sanitized
	cd build/sanitized && CFLAGS="$(SANITIZE) -g1 -DMIRRORGAN_EMULATED_TILES" LDFLAGS="$(SANITIZE)" \
	    $(abspath $(BIN))/python setup.py build_ext --inplace --force
	cd build/sanitized && LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. $(abspath $(BIN))/python -m pytest $(SHARED) \
	    tests/ops tests/inference/test_fused_glam.py tests/inference/test_fused_stem.py -k "not nvcc and not triton"

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/installed: $(BUILT_FROM) | $(BIN)/python
	$(INSTALL) torch setuptools ninja
	$(INSTALL) --no-build-isolation -e .
	@$(BIN)/python -c 'from mirrorgan_fast.ops import why_not_compiled as why; \
	    print("compiled kernels:", why() or "built")'
	@touch $@

# The tests are of the compiled kernels too, so here a failed build is an error.
$(VENV)/installed-dev: $(BUILT_FROM) | $(BIN)/python
	$(INSTALL) torch setuptools ninja
	MIRRORGAN_FAST_REQUIRE_EXTENSION=1 $(INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@ $(VENV)/installed

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { \
	    echo "$(PYTHON) was not found: install Python 3.11 or newer, or name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$$($(PYTHON) -V) is too old: name a Python 3.11 or newer, e.g. make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	    echo "$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
