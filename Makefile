# Every target makes .venv and installs what is missing by itself; a second call starts at once.
#   make demo    simulated screen, vanilla and BEN side by side: a table, a picture, pages, in minutes
#   make test    tests, and the examples in docstrings      make slow   the tests that take minutes
#   make torture kills, damaged files, faulty disks, odd input: one table of what comes of them, in 20 minutes
#   make lint    ruff, mypy, codespell                      make bench  ratios, measured side by side
#   make results the same, kept as benchmarks/RESULTS.md, which has the figures of a GPU, too, where there are some
#   make audit   published advisories on what is installed  make lock   requirements.lock, by requirements.txt
# Installed is what requirements.lock names, and refused what does not have its hashes. An index with other builds (torch
# for another CUDA, say) needs LOCK=requirements.txt.
PYTHON ?= python3
LOCK ?= requirements.lock
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test slow torture lint bench results audit lock clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python misc/demo.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

slow: $(READY)
	$(BIN)/python -m pytest -m slow $(ARGS)

torture: $(READY)
	$(BIN)/python -m tests.torture $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/codespell

bench: $(READY)
	$(BIN)/python -m benchmarks

results: $(READY)
	$(BIN)/python -m benchmarks --page

audit: $(READY)
	$(BIN)/python misc/audit.py

lock: $(READY)
	$(BIN)/uv pip compile requirements.txt --quiet --universal --python-version 3.11.4 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --output-file requirements.lock

$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "biomass needs Python 3.11.4 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
		$(if $(filter %.lock,$(LOCK)),--require-hashes) -r $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $(READY)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
