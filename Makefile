# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-kernels lint bench clean

demo: $(READY)
	$(BIN)/python -m sksoftrank

test: $(READY)
	$(BIN)/python -m pytest -n 2

# Other processors, and other numbers of threads, round products in other ways. Threads
# that wait must not hold up others.
OLD := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
THREADS := SKSOFTRANK_TEST_THREADS=2 OMP_WAIT_POLICY=passive

test-kernels: $(READY)
	$(OLD) $(BIN)/python -m pytest -m kernels -n 2
	$(AVX2) $(THREADS) $(BIN)/python -m pytest -m kernels

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	set -e; for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
