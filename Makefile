# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest
WHEEL := build/wheel
CORE := estimators compression rank losses net search ood_search ood datasets displays persistence export report private_apis

.PHONY: demo test test-kernels test-lowest test-postgres test-wheel lint docs bench clean

demo: $(READY)
	$(BIN)/python -m sksoftrank

test: $(READY)
	$(BIN)/python -m pytest -n 2

# With the lowest versions of everything that the package needs.
test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest -n 2 $(CORE:%=tests/test_%.py)

# Other processors, and other numbers of threads, round products in other ways. Threads
# that wait must not hold up others.
OLD := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
THREADS := SKSOFTRANK_TEST_THREADS=2 OMP_WAIT_POLICY=passive

test-kernels: $(READY)
	$(OLD) $(BIN)/python -m pytest -m kernels -n 2
	$(AVX2) $(THREADS) $(BIN)/python -m pytest -m kernels

# On a server of its own in a temporary folder; skipped where PostgreSQL is missing.
test-postgres: $(READY)
	$(BIN)/python -m pytest -m postgres tests/test_ood_search_faults.py tests/test_scaling.py

# Built, and installed where there is no clone.
test-wheel: $(READY)
	rm -rf $(WHEEL)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL) .
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$$(ls $(WHEEL)/*.whl)[plot,report]"
	cd $(WHEEL) && venv/bin/python -P $(CURDIR)/tests/_wheel.py *.whl

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Opens as docs/_build/html/index.html. Warnings are errors; -n asks for each name.
docs: $(VENV)/.ready-docs
	$(BIN)/sphinx-build -W -n --keep-going --quiet docs docs/_build/html

bench: $(READY)
	set -e; for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) $(LOWEST) docs/_build docs/gallery docs/generated

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.ready-docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[data-parallel,files,image,onnx,plot,report,table]' hypothesis onnxruntime polars pytest pytest-xdist
	touch $@
