# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
# `make check` is everything that CI runs. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# --- Which Python -----------------------------------------------------------------------------
# `make PYTHON=...` wins, then an active environment, then a .venv of our own.
# Only our own .venv takes the pinned versions: a user's packages are reused, never replaced.
OWN :=
ifneq ($(origin PYTHON),undefined)
  PY := $(shell command -v $(PYTHON))
  ifeq ($(PY),)
    $(error PYTHON=$(PYTHON): no such program)
  endif
else ifneq ($(filter-out $(CURDIR)/.venv,$(VIRTUAL_ENV)),)
  PY := $(VIRTUAL_ENV)/bin/python
else ifneq ($(and $(CONDA_PREFIX),$(if $(VIRTUAL_ENV),,yes)),)
  PY := $(CONDA_PREFIX)/bin/python
else
  OWN := $(CURDIR)/.venv
  PY := $(OWN)/bin/python
endif

# --- Which torch ------------------------------------------------------------------------------
# `make TORCH=2.13.0` or `make TORCH=/path/to/torch.whl`. Without it, a torch that is there stays;
# where there is none, the pinned one comes. Never an unpinned torch: that can be gigabytes of CUDA.
TORCH ?=
TORCH_PIN := $(shell grep '^torch==' constraints.txt)
TORCH_SPEC := $(if $(TORCH),$(if $(findstring /,$(TORCH))$(filter %.whl,$(TORCH)),$(TORCH),torch==$(TORCH)),$(TORCH_PIN))

# --- Stamps: they live inside the environment and die with it ----------------------------------
STAMPS := $(if $(OWN),$(OWN),$(shell $(PY) -c 'import sys; print(sys.prefix)'))/.secateur
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(PY) -m pip install
PINS := $(if $(OWN),-c $(STAMPS)/constraints.txt)
BUILT_FROM := pyproject.toml CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
# An editable install lists its modules: one that moved, or another checkout in this environment, asks for a new install.
INSTALLED := $(CURDIR):$(firstword $(shell find src -name '*.py' | LC_ALL=C sort | cksum))
OTHER := $(if $(filter $(INSTALLED),$(shell cat $(STAMPS)/installed 2>/dev/null)),,FORCE)

# --- How tests run ----------------------------------------------------------------------------
# One thread per process: two torch threads beside a busy neighbour are ten times slower.
WORKERS ?= 2
ARGS ?=
export OMP_NUM_THREADS := 1
JUNIT := build/junit
RUN := SECATEUR_REQUIRE_NATIVE=1 $(PY)
PYTEST = $(RUN) -m pytest --junitxml=$(JUNIT)/$@.xml
SCRIPTS = $$($(PY) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')

.PHONY: help env demo test check lint format types structure doctest examples sanitizers tsan neon browser docs bench readme clean FORCE

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo "PYTHON=...  use that interpreter's environment   (now: $(PY))"
	@echo "TORCH=...   a version or a wheel to install      (now: $(if $(TORCH),$(TORCH_SPEC),the one there is or $(TORCH_PIN)))"
	@echo "ARGS=...    more for pytest, as in make test ARGS='-k masks'"

env: $(STAMPS)/dev  ## make the environment with all that development needs

demo: $(STAMPS)/demo  ## install, then train, prune and measure two small networks (runs/demo/report.html)
	$(SCRIPTS)/secateur demo $(ARGS)

test: $(STAMPS)/dev  ## the tests
	$(PYTEST) tests --ignore=tests/structure -m 'not browser' -n $(WORKERS) --dist worksteal $(ARGS)

check: lint types structure test doctest examples sanitizers tsan neon demo browser docs  ## everything that CI runs

lint: $(STAMPS)/dev  ## formatting and lint
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: $(STAMPS)/dev  ## rewrite files as lint wants them
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

types: $(STAMPS)/dev  ## pyright
	$(PY) -m pyright --pythonpath $(PY)

structure: $(STAMPS)/dev  ## import directions, sizes, docstrings, skip list, the code blocks of README and docs
	$(PYTEST) tests/structure -n $(WORKERS) $(ARGS)

doctest: $(STAMPS)/dev  ## the examples inside docstrings
	SECATEUR_CACHE=off $(PYTEST) --doctest-modules src $(ARGS)

examples: $(STAMPS)/dev  ## run every file of examples/
	@for file in $(sort $(wildcard $(CURDIR)/examples/*.py)); do \
	  scratch=$$(mktemp -d); echo "== $$file"; (cd $$scratch && $(RUN) $$file) || exit 1; rm -rf $$scratch; done

sanitizers: $(STAMPS)/dev  ## address and undefined-behaviour sanitizers on the native core
	PYTHON=$(PY) WORKERS=$(WORKERS) bash tools/sanitizers.sh

tsan:  ## the thread pool under the thread sanitizer
	bash tools/tsan.sh

neon: $(STAMPS)/dev  ## the native core cross-compiled for aarch64, run under qemu
	PYTHON=$(PY) bash tools/neon.sh

browser: $(STAMPS)/dev  ## open the HTML report in headless Chromium
	SECATEUR_REQUIRE_BROWSER=1 $(PYTEST) tests -m browser $(ARGS)

docs: $(STAMPS)/dev  ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

bench:  ## how to run the benchmarks
	@echo "One script per claim; each writes benchmarks/results/NAME.json and resumes where it stopped:"
	@ls benchmarks/*.py | grep -v -e readme_table -e '/_' | sed "s|^|  $(PY) |"
	@echo "Then \`make readme\` puts the results into README.md and docs/results.md."

readme: $(STAMPS)/dev  ## write the result tables of README.md and docs/results.md from benchmarks/results
	$(PY) benchmarks/readme_table.py

clean:  ## remove what was built and written, the .venv too
	rm -rf .venv build dist site runs .pytest_cache .ruff_cache .hypothesis

# --- The environment --------------------------------------------------------------------------
FORCE:

ifneq ($(OWN),)
$(PY):
	python3 -m venv $(OWN)
endif

$(STAMPS)/torch: $(if $(TORCH),FORCE) | $(PY)
	@mkdir -p $(STAMPS)
	@grep -v '^torch==' constraints.txt > $(STAMPS)/constraints.txt
	@if [ -z '$(TORCH)' ] && $(PY) -c 'import torch; print("using torch", torch.__version__, "of this environment")' 2>/dev/null; \
	  then :; else $(PIP) '$(TORCH_SPEC)'; fi
	@touch $@

# No build isolation: the build requirements come once, not anew with every install.
$(STAMPS)/build: pyproject.toml constraints.txt | $(STAMPS)/torch
	$(PIP) -q $(PINS) 'scikit-build-core>=0.10' 'nanobind>=2.4'
	@command -v cmake >/dev/null || $(PIP) -q 'cmake>=3.18'
	@touch $@

$(STAMPS)/demo: EXTRAS := demo
$(STAMPS)/dev: EXTRAS := dev,docs
$(STAMPS)/demo $(STAMPS)/dev: $(BUILT_FROM) $(STAMPS)/build $(OTHER) | $(STAMPS)/torch
	@echo "installing secateur[$(EXTRAS)] and building its native core (a minute or two the first time)"
	$(PIP) -q $(PINS) --no-build-isolation -e '.[$(EXTRAS)]'
	@echo $(INSTALLED) > $(STAMPS)/installed
	@touch $@
