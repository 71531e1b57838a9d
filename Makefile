# Everything happens in one virtual environment; `make clean` forgets it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard emulators/*.py ensembles/*.py da/*.py diagnostics/*.py cli/*.py)
PYTEST_ARGS ?=

.PHONY: demo test lint clean

# 32 members of a warming ocean, an assimilation experiment, and a page about them: demo/report.html
demo: $(VENV)/.installed
	$(BIN)/polynya demo --out demo --overwrite

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A strict editable install links files one by one, so a new or moved file needs it again.
$(VENV)/.installed: pyproject.toml constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build demo
