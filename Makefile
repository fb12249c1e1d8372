# make demo: the main job on bundled data. make docs: the documentation. make test: everything that must pass before a change lands.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
unexport PYTHONDONTWRITEBYTECODE # what is used is compiled once, by whoever imports it first

.PHONY: demo docs test lint types tests clean

# the pip that comes with Python takes three times as long to choose as today's
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv --upgrade-deps $(VENV)
	$(BIN)/pip install --quiet --no-compile --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	rm -rf demo
	$(BIN)/fxdistill demo --out demo

docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs docs/_build
	@echo "documentation: docs/_build/index.html"

test: lint
	$(MAKE) --jobs=2 types tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

tests: $(VENV)/.installed
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build dist *.egg-info
