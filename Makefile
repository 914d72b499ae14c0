# Every target works alone on a fresh Linux machine with Python 3.11 or newer: it makes .venv and installs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check serve clean

$(STAMP): pyproject.toml integration_tests/torch_cpu/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[demo,test,check]" ./integration_tests/torch_cpu
	touch $@

demo: $(STAMP)  ## start the server with the built-in model, run the comparison, print its tables
	$(BIN)/python -m integration_tests.demo

test: $(STAMP)  ## the whole test suite; in file order, which keeps fewest servers in memory at once
	$(BIN)/python -m pytest -p no:randomly --durations=15

check: $(STAMP)  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: $(STAMP)  ## a server with the built-in model on 127.0.0.1:30000, until interrupted
	$(BIN)/python -m integration_tests.serve

clean:
	rm -rf $(VENV)
