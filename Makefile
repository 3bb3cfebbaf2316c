# Everything runs from a fresh checkout: the environment is made on first use and redone when the
# requirements change. Overrides: PYTHON=python3.12 SEED=1 VENV=/some/where; an empty VENV= uses
# $(PYTHON) as it is, which is what the container does.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow results bench bench-env lint clean

PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
PROCESSES ?= 2

PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
# The stamps lie inside the environment, so deleting it deletes them; the interpreter's name is
# part of theirs, so another PYTHON is noticed.
STAMP := $(if $(VENV),$(VENV)/.installed-$(subst /,-,$(PYTHON)))
DEV_STAMP := $(if $(VENV),$(VENV)/.installed-dev-$(subst /,-,$(PYTHON)))

# Seed 0 is the preset as it is; other seeds keep their own corpus, cache and run.
DEMO := demo$(if $(filter-out 0,$(SEED)),-$(SEED))
CACHE_FLAG := $(if $(filter-out 0,$(SEED)),--cache cache/$(DEMO))
RUN_FLAG := $(if $(filter-out 0,$(SEED)),--run runs/$(DEMO))
BEST := --preset best --run runs/$(DEMO)-best

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

# `best` has the second core: trained, evaluated and drawn beside the slides' policy, in a process
# group of its own, which ends with this one; its log is shown when it has ended.
demo: $(STAMP)  ## the whole path on a small built-in corpus; SEED=1 makes another one
	@start=$$SECONDS
	set -x
	$(PY) soundscapes.py --preset demo --seed $(SEED) --out data/$(DEMO)
	$(PY) scorers.py --preset demo --seed $(SEED) --corpus data/$(DEMO)
	$(PY) preprocess.py --preset demo --corpus data/$(DEMO) $(CACHE_FLAG)
	$(PY) preprocess.py --preset demo --corpus data/$(DEMO) --pairs all --cache cache/$(DEMO)-all
	mkdir -p runs
	{ set -m; } 2>/dev/null
	{
		$(PY) DQN.py $(BEST) --cache cache/$(DEMO)-all --overwrite --seed $(SEED)
		$(PY) evaluate.py $(BEST) --cache cache/$(DEMO)
		$(PY) visualize.py $(BEST) --cache cache/$(DEMO)
		$(PY) evaluate.py $(BEST) --cache cache/$(DEMO)-all --out runs/$(DEMO)-best/all
	} > runs/$(DEMO)-best.log 2>&1 &
	{ best=$$!; trap 'kill -- -$$best 2> /dev/null || :' EXIT; set +m; } 2>/dev/null
	$(PY) DQN.py --preset demo --overwrite --seed $(SEED) $(CACHE_FLAG) $(RUN_FLAG)
	$(PY) evaluate.py --preset demo $(CACHE_FLAG) $(RUN_FLAG)
	$(PY) visualize.py --preset demo $(CACHE_FLAG) $(RUN_FLAG)
	{ ended=0; wait $$best || ended=$$?; } 2>/dev/null
	cat runs/$(DEMO)-best.log
	{ [ $$ended = 0 ] || exit $$ended; } 2>/dev/null
	$(PY) visualize.py $(BEST) --cache cache/$(DEMO) --html --beside runs/$(DEMO)
	{ set +x; } 2>/dev/null
	echo
	echo "demo: $$((SECONDS - start)) s in all"
	echo "figures: runs/$(DEMO)/figures/, of the preset best: runs/$(DEMO)-best/figures/"
	echo "page of both: runs/$(DEMO)-best/report/index.html (open it in a browser: look and listen)"
	sentence() { sed -n "s/^ *\"verdict\": \"\(.*\)\",*$$/$$1: \1/p" "$$2/results.json"; }
	sentence "slides, classes known to sound" runs/$(DEMO)
	sentence "best, classes known to sound" runs/$(DEMO)-best
	sentence "best, all classes asked for" runs/$(DEMO)-best/all

# One thread a process: small tensors are slower on two, and the tests already use the cores.
# A file stays on one process, so that what its tests share is made once; files are handed out in
# the order of tests/conftest.py.
test: $(DEV_STAMP)  ## all tests but the slow ones
	@OMP_NUM_THREADS=1 MPLBACKEND=Agg $(PY) -m pytest -m "not slow" \
		-n $(PROCESSES) --dist loadfile --no-loadscope-reorder

test-slow: $(DEV_STAMP)  ## the slow tests, an hour: scripts killed again and again; SLOW=FILES for some
	@OMP_NUM_THREADS=1 MPLBACKEND=Agg $(PY) -m pytest -m slow -n $(PROCESSES) $(SLOW)

# Hours on two cores; what is finished is skipped. DATA holds esc10/, desed_timelines/, fsdd/ and
# dcase2023_baseline/.
results: $(DEV_STAMP)  ## repeat all of RESULTS.md; DATA=folder of the real data
	@OMP_NUM_THREADS=1 $(PY) -m studies.reproduce all $(DATA)

# Hours on two cores; BENCH=--quick tries everything in minutes, BENCH="--sections acting" a part.
bench: $(STAMP)  ## one table of speed and memory: before, now, needed; BENCH=--quick tries it
	@$(PY) -m benchmarks.speed $(BENCH)

bench-env: $(STAMP)  ## the gymnasium environment against DQN.py
	@$(PY) -m benchmarks.env

lint: $(DEV_STAMP)  ## formatting and static checks
	@$(PY) -m ruff format --check .
	$(PY) -m ruff check .

clean:  ## remove the environment and the tools' caches; cache/, data/ and runs/ stay
	@rm -rf .pytest_cache .hypothesis .ruff_cache __pycache__ */__pycache__ */*/__pycache__
	if [ -n "$(VENV)" ] && [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi

ifneq ($(VENV),)
$(STAMP): requirements.txt
	@fail() { echo "error: $$*" >&2; exit 1; }
	command -v "$(PYTHON)" >/dev/null || fail "$(PYTHON) not found; give PYTHON=<a Python 3.11+>"
	minor='import sys; print("%d.%d" % sys.version_info[:2])'
	have=$$("$(PYTHON)" -c "$$minor") || fail "$(PYTHON) does not run; give PYTHON=<a Python 3.11+>"
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		fail "$(PYTHON) is Python $$have, 3.11 or newer is needed; give PYTHON=<another>"
	if "$(PY)" -m pip --version >/dev/null 2>&1; then
		old=$$("$(PY)" -c "$$minor")
		[ "$$old" = "$$have" ] ||
			fail "$(VENV) holds Python $$old, not $$have; 'make clean' first or give VENV=<another>"
	else
		"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null ||
			fail "$(PYTHON) cannot make environments; on Debian or Ubuntu: apt install python3-venv"
		"$(PYTHON)" -m venv "$(VENV)"
	fi
	echo "installing requirements.txt into $(VENV) (torch is large)"
	"$(PY)" -m pip install --disable-pip-version-check -q -r requirements.txt
	touch "$@"

$(DEV_STAMP): requirements-dev.txt requirements-studies.txt $(STAMP)
	@echo "installing requirements-dev.txt into $(VENV)"
	"$(PY)" -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch "$@"
endif
