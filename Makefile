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

PYTEST := $(BIN)/python -m pytest -p no:randomly --durations=15

test: $(STAMP)  ## the whole test suite: unit tests beside those with servers, which run in file order (fewest in memory)
	@( $(PYTEST) plugin/tests kernels/tests > $(VENV)/unit.log 2>&1; status=$$?; cat $(VENV)/unit.log; exit $$status ) & \
	unit=$$!; $(PYTEST) integration_tests/tests; servers=$$?; wait $$unit; units=$$?; \
	echo "exit status of unit tests: $$units, of tests with servers: $$servers"; [ $$units = 0 ] && [ $$servers = 0 ]

check: $(STAMP)  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: $(STAMP)  ## a server with the built-in model on 127.0.0.1:30000, until interrupted
	$(BIN)/python -m integration_tests.serve

clean:
	rm -rf $(VENV)
