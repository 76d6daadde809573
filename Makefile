# Every developer command; `make help` lists them. Needs Python 3.11+, a C compiler and make.
# PYTHON=python3.12 picks the interpreter, LENS_BLAS=<pkg-config name> another BLAS.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
C_SOURCES := $(wildcard csrc/*)
# Reads the requirements of an extra without building the package a second time.
REQUIREMENTS := $(PYTHON) -c 'import sys, tomllib; \
	extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(r for r in extras[sys.argv[1]] if not r.startswith("lens-lm")), sep="\n")'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help venv demo test test-c test-py test-asan test-py-asan test-py-asan-core test-tsan test-neon test-valgrind \
	coverage coverage-c coverage-py \
	bench lint format typecheck notebooks wheel sdist world report clean FORCE

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up -----------------------------------------------------------------------------------

# Changes only when a switch that changes the build does.
CONFIG := BLAS=$(LENS_BLAS) SANITIZE=$(SANITIZE) COVERAGE=$(COVERAGE) DEBUG=$(DEBUG)
$(VENV)/.config: FORCE
	@mkdir -p $(VENV)
	@echo '$(CONFIG)' | cmp -s - $@ || echo '$(CONFIG)' > $@

# Installed in editable mode: Python files need no rebuild, C files are listed here.
$(VENV)/.installed: pyproject.toml constraints.txt setup.py $(wildcard _build/*.py) $(C_SOURCES) \
		$(VENV)/.config
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lens needs Python 3.11 or \
	newer, and $(PYTHON) is %d.%d; try: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Installing lens into $(VENV) (the first time this fetches torch: a few minutes)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools wheel numpy $$($(PYTHON) _build/native.py requirements)
	@$(PIP) --no-build-isolation --editable '.[hf]'
	@touch $@

$(VENV)/.extra-%: $(VENV)/.installed
	@$(REQUIREMENTS) $* > $@.txt
	@$(PIP) --requirement $@.txt
	@touch $@

venv: $(VENV)/.installed ## create .venv with the package, its C core and all it needs

demo: $(VENV)/.installed ## run the demonstration: a table, lens-demo/report.html and results.json
	$(VENV)/bin/lens demo

world: $(VENV)/.installed ## remake the sample world's three models from their seed
	$(PY) docs/studies/sample_world/train_world.py

report: $(VENV)/.installed ## write the report of the last demonstration again
	$(VENV)/bin/lens report lens-demo --out lens-demo/report.html

# --- tests ------------------------------------------------------------------------------------

test: test-c test-py ## C tests, then Python tests

# Tests use one thread each (tests/conftest.py), so two cores run two processes.
WORKERS ?= 2
test-py: $(VENV)/.extra-test ## Python tests; choose with PYTEST_ARGS='-k name', WORKERS=0 for one process
	$(PY) -m pytest --numprocesses=$(WORKERS) --dist=worksteal $(PYTEST_ARGS)

VARIANT ?= plain
C_DIR := build/c-$(VARIANT)
C_CORE := $(filter-out csrc/convert.c csrc/module.c csrc/py_%.c,$(wildcard csrc/*.c))
C_TESTS := $(patsubst tests/c/%.c,$(C_DIR)/%,$(sort $(wildcard tests/c/test_*.c)))
C_WARNINGS := -Wall -Wextra -Wvla $(if $(WERROR),-Werror)
C_VARIANT_plain := -g
C_VARIANT_asan := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all \
	-fno-omit-frame-pointer
C_VARIANT_tsan := -O1 -g -fsanitize=thread
C_VARIANT_cov := -O0 -g --coverage
C_FLAGS := -std=c11 -O3 -ffp-contract=off -pthread -Icsrc $(C_WARNINGS) $(C_VARIANT_$(VARIANT))

$(C_DIR)/blas.cflags $(C_DIR)/blas.libs: $(C_DIR)/blas.%: $(VENV)/.installed
	@mkdir -p $(C_DIR)
	@$(PY) _build/native.py $* > $@

$(C_DIR)/%.o: csrc/%.c $(C_SOURCES) $(C_DIR)/blas.cflags
	@$(CC) $(C_FLAGS) -Wconversion @$(C_DIR)/blas.cflags -c $< -o $@

$(C_DIR)/libcore.a: $(patsubst csrc/%.c,$(C_DIR)/%.o,$(C_CORE))
	@rm -f $@ && $(AR) rcs $@ $^

$(C_DIR)/test_%: tests/c/test_%.c $(wildcard tests/c/*.h) $(C_DIR)/libcore.a $(C_DIR)/blas.libs
	@$(CC) $(C_FLAGS) @$(C_DIR)/blas.cflags $< $(C_DIR)/libcore.a @$(C_DIR)/blas.libs -o $@

test-c: $(C_TESTS) ## C tests without Python
	@for t in $^; do echo "$(VARIANT) $$t"; OPENBLAS_NUM_THREADS=1 $(RUN) $$t || exit 1; done

test-asan: ## C tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) test-c VARIANT=asan

test-tsan: ## C tests under ThreadSanitizer
	@$(MAKE) test-c VARIANT=tsan RUN='env TSAN_OPTIONS=halt_on_error=1'

# AArch64, where the baseline is NEON, by a cross compiler and an emulator; without BLAS, and so
# without the families that call it. What both machines print must be the same to the last bit.
ARM_CC ?= aarch64-linux-gnu-gcc
ARM_RUN ?= qemu-aarch64 -L /usr/aarch64-linux-gnu
ARM_DIR := build/c-neon
NO_BLAS := $(shell grep -L '"blas.h"' $(C_CORE))
NO_BLAS_TESTS := $(addprefix tests/c/test_,dtype.c loss.c moments.c neuron.c parallel.c weights.c)
test-neon: ## C tests and equal bits on emulated AArch64; skipped without its tools
	@command -v $(ARM_CC) >/dev/null && command -v $(firstword $(ARM_RUN)) >/dev/null || \
		{ echo "skipped: no $(ARM_CC) or no $(firstword $(ARM_RUN)) (Debian: apt-get install \
	gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)"; exit 0; } && set -e; \
	rm -rf $(ARM_DIR); mkdir -p $(ARM_DIR); \
	for t in $(NO_BLAS_TESTS) tests/c/bits.c; do echo "neon $$t"; \
		out=$(ARM_DIR)/$$(basename $$t .c); \
		$(ARM_CC) $(C_FLAGS) $$t $(NO_BLAS) -lm -o $$out; $(ARM_RUN) $$out >$$out.txt; \
	done; \
	$(CC) $(C_FLAGS) tests/c/bits.c $(NO_BLAS) -lm -o $(ARM_DIR)/bits-here; \
	$(ARM_DIR)/bits-here | diff - $(ARM_DIR)/bits.txt && echo "the same bits here and there"

test-valgrind: ## C tests under valgrind
	@$(MAKE) test-c RUN='valgrind --quiet --error-exitcode=1 --leak-check=full'

# Lines of `gcov` for the files that match the first argument, and their total.
COVERED = awk -F "'" -v want='$(1)' '/^File/ {f = $$2} \
	/^Lines/ && f ~ want {split($$0, x, /[:% ]+/); hit += x[3] * x[5] / 100; all += x[5]; \
		printf "%-24s %6.2f %% of %d lines\n", f, x[3], x[5]} /^Lines/ {f = ""} \
	END {if (!all) exit 1; printf "%-24s %6.2f %% of %d lines\n", "total", 100 * hit / all, all}'

coverage-c: ## lines of levels 0 to 3 of csrc that the C tests reach
	@rm -f build/c-cov/*.gcda
	@$(MAKE) test-c VARIANT=cov
	@gcov --no-output build/c-cov/*.gcda | $(call COVERED,^csrc/)

# The Python suite against another build of the C core: in a copy of the tree under build/, so that
# neither this checkout nor what is installed changes.
SIDE_asan := SANITIZE=1
SIDE_cov := COVERAGE=1
NOT_COPIED := $(patsubst %,--exclude=./%,build dist .git .ci $(VENV) lens/_lib 'lens/_core*.so')
build/py-%/.built: $(VENV)/.extra-test FORCE
	@rm -rf $(@D) && mkdir -p $(@D)
	@tar -cf - $(NOT_COPIED) . | tar -xf - -C $(@D)
	@cd $(@D) && env $(SIDE_$*) $(abspath $(PY)) setup.py --quiet build_ext --inplace
	@touch $@

# Leaks are left to valgrind and to the counter of the glue: the interpreter itself leaks.
SANITIZED := env ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	PYTHONMALLOC=malloc
# Left out: two tests that start Python with an empty environment, so without the runtime of ASan.
ALONE := import_outside_the_checkout the_blas_that_is_loaded_is_the_one_carried_along
test-py-asan: build/py-asan/.built ## Python tests on a core with both sanitizers
	@cd $(<D) && LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) \
	$$($(CC) -print-file-name=libubsan.so)" $(SANITIZED) $(abspath $(PY)) -m pytest \
	--numprocesses=$(WORKERS) --dist=worksteal $(ALONE:%=--deselect tests/unit/test_packaging.py::test_%) $(PYTEST_ARGS)

# Tests of the numerics and of the glue, without models; seconds, also under a sanitizer.
NUMERICS := $(addprefix tests/unit/,$(addprefix core/test_,core.py core_rules.py ops_bits.py ops_hold.py ops_refuse.py \
	threads.py) $(addprefix test_,refusals.py pooling.py subspace.py losses.py metrics.py neurons.py weights.py))
test-py-asan-core: ## the same, tests of the numerics only
	@$(MAKE) --no-print-directory test-py-asan PYTEST_ARGS='$(NUMERICS) $(PYTEST_ARGS)'

coverage-py: build/py-cov/.built ## lines of level 4 of csrc, the glue, that the Python tests reach
	@cd $(<D) && $(abspath $(PY)) -m pytest --quiet $(NUMERICS)
	@cd $(<D) && gcov --no-output $$(find build -name '*.gcda') \
		| $(call COVERED,^csrc/(convert|module|py_|shims))

coverage: coverage-c coverage-py ## both

bench: $(VENV)/.extra-test ## every benchmark as a table, and bench.json
	$(PY) -m tests.bench

# Two at a time, each on one thread: that is what two cores do fastest.
notebooks: $(VENV)/.extra-notebook ## execute every notebook from top to bottom
	@printf '%s\n' $(sort $(wildcard notebooks/*.ipynb)) | OMP_NUM_THREADS=1 xargs -P 2 -n 1 \
		$(VENV)/bin/jupyter-execute --timeout=900

# --- style ------------------------------------------------------------------------------------

C_FORMATTED := $(wildcard csrc/*.[ch] tests/c/*.[ch])

lint: $(VENV)/.extra-dev ## ruff, codespell and clang-format, changing nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/clang-format --dry-run --Werror $(C_FORMATTED)

format: $(VENV)/.extra-dev ## let ruff and clang-format rewrite the sources
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(C_FORMATTED)

typecheck: $(VENV)/.extra-dev ## mypy --strict, and the stub of the C core against the real thing
	$(PY) -m mypy
	@mkdir -p build && printf '[mypy]\nfollow_imports = skip\n' > build/stubtest.ini
	$(PY) -m mypy.stubtest --mypy-config-file build/stubtest.ini lens._core

# --- packages ---------------------------------------------------------------------------------

sdist: $(VENV)/.extra-dev ## source distribution in dist/
	$(PY) -m build --sdist

wheel: $(VENV)/.extra-dev $(VENV)/.extra-test ## wheel in dist/, built from a source distribution
	rm -rf dist
	$(PY) -m build
	LENS_WHEEL=$$(echo dist/*.whl) $(PY) -m pytest --quiet tests/unit/test_packaging.py -k wheel

clean: ## remove what was built, keeping .venv
	rm -rf build dist *.egg-info lens/_lib lens/_core*.so lens/_core*.dylib bench.json
	rm -f $(VENV)/.installed
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
