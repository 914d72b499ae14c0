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

# A half that hangs is ended after LIMIT seconds, and shows where every thread stood.
LIMIT := 2700
PYTEST := timeout --signal=ABRT --kill-after=30 $(LIMIT) \
	$(BIN)/python -X faulthandler -m pytest -p no:randomly --durations=15
SERVERS := integration_tests/tests
# Beside the other tests with servers, on the second core: unit tests, and those that share a server with no others.
BESIDE := $(SERVERS)/test_law_server.py $(SERVERS)/test_experiments_server.py \
	$(SERVERS)/test_experiments_pivot.py $(SERVERS)/test_experiments_stopping.py
LOG := $(VENV)/beside.log

test: $(STAMP)  ## the whole test suite in two processes; in file order, which keeps fewest servers in memory at once
	@( $(PYTEST) plugin/tests kernels/tests $(BESIDE) > $(LOG) 2>&1; status=$$?; cat $(LOG); exit $$status ) & \
	beside=$$!; $(PYTEST) $(SERVERS) $(BESIDE:%=--ignore=%); first=$$?; wait $$beside; second=$$?; \
	echo "exit status of both halves: $$first, $$second"; [ $$first = 0 ] && [ $$second = 0 ]

check: $(STAMP)  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: $(STAMP)  ## a server with the built-in model on 127.0.0.1:30000, until interrupted
	$(BIN)/python -m integration_tests.serve

clean:
	rm -rf $(VENV)
