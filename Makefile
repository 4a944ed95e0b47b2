# make demo   learn handwritten digits on the CPU, show and measure them
# make test   style and all tests of less than a minute, in two processes (JOBS=8: in eight)
# make soak   the long tests
# make gpu-check  on a machine with a GPU: builds its ops, tests and measures them, into docs/benchmarks-gpu.json
# make lint   style only
# make venv   only set up .venv (also: make setup)
# make clean  remove .venv and caches; runs and data sets stay
#
# Needs a Python from 3.10 to 3.13 with venv, and a network for the packages. Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test soak gpu-check lint venv setup clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -9

# The copy of the lock inside .venv is written last, so a set-up that was interrupted is repeated. What is there is brought up to date, not
# made anew, so that there is something to work with when the network is gone; another version of Python, or one that does not start, is made anew.
VERSION := import sys; print(sys.version_info[:2])
venv setup:
	@if ! cmp -s requirements.lock $(VENV)/installed.lock || ! $(BIN)/python -c 'import pip' 2>/dev/null; then $(MAKE) --no-print-directory install; fi

.PHONY: install
install:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Error: $(PYTHON) is no Python 3.10 to 3.13; give one, as in: make demo PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "Error: $(PYTHON) has no venv; install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@echo "Installing the packages of requirements.lock into $(VENV); this takes some minutes."
	@[ "$$($(BIN)/python -c '$(VERSION)' 2>/dev/null)" = "$$($(PYTHON) -c '$(VERSION)')" ] || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@rm -f $(VENV)/installed.lock
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --requirement requirements.lock
	@cp requirements.lock $(VENV)/installed.lock

demo: venv
	$(BIN)/python -m experiments.demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile

soak: venv
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=0

gpu-check: venv
	$(BIN)/python -m bench.gpu_check

lint: venv
	$(BIN)/python -m ruff check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
