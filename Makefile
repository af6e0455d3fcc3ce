PYTHON ?= python3
VENV := .venv

.PHONY: install test slow lint types docs demo all
$(VENV)/bin/kilolayer:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[dev]"
install: $(VENV)/bin/kilolayer
test: install
	$(VENV)/bin/pytest -n 2 -m "not slow"
slow: install
	$(VENV)/bin/pytest -n 2 -m slow
lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
types: install
	$(VENV)/bin/mypy
docs: install
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[docs]"
	$(VENV)/bin/sphinx-build -W -n -q --keep-going docs docs/_build
demo: install
	$(VENV)/bin/kilolayer demo
all: lint types test slow
