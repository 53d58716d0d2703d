# `make` lists the targets. Everything runs in .venv, which `make env` builds.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Python 3.11 where there is one (the version the lock is tested with), else python3.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
STAMP := .venv/.stamp
JOBS ?= 2
LOCK_ARGS ?=

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

.PHONY: env
env: $(STAMP)  ## build .venv from the hashed lock, if it changed

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null \
	  || { echo "needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: quickstart
quickstart: env  ## train LeNet on MNIST with SGD, Adam and Entropy-SGD
	$(BIN)/entropy-optax train --preset quickstart

.PHONY: tune
tune: env  ## choose the settings of quickstart's optimizers from an equal grid (hours)
	$(BIN)/entropy-optax tune --grid quickstart_grid --out results/quickstart

ROW ?= lenet
OPTIMIZER ?= entropy_sgd
SEED ?= 0

.PHONY: table1
table1: env  ## train ROW of the paper's table with OPTIMIZER and SEED; resumable
	$(BIN)/entropy-optax table1 --row $(ROW) --optimizer $(OPTIMIZER) --seed $(SEED)

.PHONY: study
study: env  ## the comparison on small training sets, with all its parts (3 hours)
	$(BIN)/entropy-optax study --part compare
	$(BIN)/entropy-optax study --part headroom
	$(BIN)/entropy-optax study --part ablation
	$(BIN)/entropy-optax study --part transfer
	$(BIN)/entropy-optax study --part repetition
	$(BIN)/entropy-optax study --part stability
	$(BIN)/entropy-optax report

.PHONY: report
report: env  ## the tables and figures of results/ from its records
	$(BIN)/entropy-optax report

.PHONY: test
test: lint env  ## lint, types, doctests, README and the fast tests, from nothing
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: lint
lint: env  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pyright

.PHONY: format
format: env  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test-slow
test-slow: env  ## the slow tests, one by one on idle cores; the result is kept in tests/slow_results.txt
	@log=$$(mktemp); rc=0; \
	$(BIN)/python -m pytest -m slow -o timeout=1800 2>&1 | tee "$$log" || rc=$$?; \
	{ echo "Last run of the slow tests (make test-slow)."; \
	  echo "date      $$(date -u +%Y-%m-%d)"; \
	  $(BIN)/python -c 'import importlib.metadata as m, os, platform; \
	print("versions ", "python", platform.python_version(), \
	*(f"{p} {m.version(p)}" for p in ("jax", "optax", "flax", "numpy"))); \
	print("machine  ", platform.system(), platform.machine(), os.cpu_count(), "cores")'; \
	  echo "result    $$(tail -n 1 "$$log" | tr -d '=' | xargs)"; \
	} > tests/slow_results.txt; rm -f "$$log"; cat tests/slow_results.txt; exit $$rc

RECORD ?= benchmarks/results/cpu.json
ONLY ?= not full_batch

.PHONY: bench
bench: env  ## time a gradient against plain SGD's, on idle cores; keep RECORD (30 minutes)
	@[ '$(origin ONLY)' = file ] || [ '$(origin RECORD)' != file ] \
	  || { echo "ONLY: name a RECORD too, or a part would replace the whole"; exit 1; }
	mkdir -p $(dir $(RECORD))
	$(BIN)/python -m pytest benchmarks -o addopts= -o python_files='bench_*.py' \
	  -o timeout=0 -o pythonpath=benchmarks -k '$(ONLY)' \
	  --benchmark-only --benchmark-json=$(RECORD) \
	  --benchmark-columns=median,rounds --quiet
	$(BIN)/python benchmarks/table.py $(RECORD) docs/performance.md

# glibc then keeps what a process frees, and no step waits for the kernel's fresh pages.
KEEP := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 \
  MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=536870912

.PHONY: bench-kept
bench-kept: RECORD = benchmarks/results/cpu_kept.json
bench-kept: ONLY = seconds_per_gradient or pytorch
bench-kept: env  ## time a gradient with memory kept between calls (Linux; 20 minutes)
	$(KEEP) $(MAKE) --no-print-directory bench RECORD='$(RECORD)' ONLY='$(ONLY)'

.PHONY: bench-measure
bench-measure: RECORD = benchmarks/results/measure.json
bench-measure: env  ## time the instruments and their peak memory, on idle cores (Linux; 27 minutes)
	$(BIN)/python benchmarks/bench_measure.py $(RECORD)
	$(BIN)/python benchmarks/table.py $(RECORD) docs/performance.md

.PHONY: bench-scale
bench-scale: RECORD = benchmarks/results/scale.json
bench-scale: env  ## time meshes of 1 to 8 devices and 1 to 4 processes, on idle cores (12 minutes)
	JAX_PLATFORMS=cpu $(BIN)/python benchmarks/bench_scale.py $(RECORD)
	$(BIN)/python benchmarks/table.py $(RECORD) docs/scaling.md

.PHONY: notebook
notebook: env  ## bring the notebooks and their text forms in line, and run them
	$(BIN)/jupytext --sync notebooks/*.ipynb
	MPLBACKEND=module://matplotlib_inline.backend_inline \
	  PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter-execute --inplace notebooks/*.ipynb

.PHONY: lock
lock: env  ## renew the lock after a change of pyproject (LOCK_ARGS=--upgrade: all of it)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --fork-strategy fewest --generate-hashes --no-header --no-emit-index-url \
	  --quiet $(LOCK_ARGS) --output-file requirements.lock
	@sed -i '1i # The environment of make env, with the hashes of all platforms. Renewed by make lock.' requirements.lock
	@! grep -nE '://|find-links|\(/' requirements.lock || { echo "a path or host in the lock"; exit 1; }

# Two environments: the core alone, then all extras, whose Flax asks for a newer JAX.
# Old packages warn about their newer neighbours, so a warning is no error here.
LOWEST := -m pytest -n $(JOBS) -p no:cacheprovider -W default
EXTRAS := entropy_optax/experiments entropy_optax/measure entropy_optax/training \
  tests/experiments tests/measure tests/training tests/drive_table1.py tests/toy_task.py \
  $(patsubst %,tests/test_%.py,bench_measure checkpoint docs notebooks)

.PHONY: lower-bounds
lower-bounds: env  ## the fast tests with the lowest versions that pyproject declares
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; pip="$(BIN)/uv pip"; \
	for env in core extras; do \
	  $(BIN)/uv venv --quiet --python $(PYTHON) "$$dir/$$env"; \
	  export VIRTUAL_ENV="$$dir/$$env"; \
	  if [ $$env = core ]; then \
	    $$pip install --quiet --resolution lowest-direct --editable .; \
	    $$pip install --quiet beartype hypothesis jaxtyping \
	      pytest pytest-benchmark pytest-timeout pytest-xdist; \
	    tests="entropy_optax tests $(EXTRAS:%=--ignore=%)"; \
	  else \
	    $$pip install --quiet --resolution lowest-direct --editable '.[test]'; \
	    tests="$(EXTRAS)"; \
	  fi; \
	  $$pip list; "$$dir/$$env/bin/python" $(LOWEST) $$tests; \
	done

.PHONY: clean
clean:  ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
