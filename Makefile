# The one list of what can be done here. Every target makes its own .venv from python3.
#
#   make demo                   a cluster and a shop on loopback: found, lock, call, kill, join, go on
#   make test  [FAST=1]         the whole suite; FAST leaves out slow tests, processes and servers
#   make lint                   format, ruff, mypy, the floors of the house
#   make sim   [SEEDS=n START=m] [LAYER=cores|node] [SEED=n]    seeded worlds; SEED replays one
#   make bench                  the scripts in benchmarks/, one table each
#   make criteria               which acceptance criteria the recorded runs have proved
#   make docs                   writes docs/settings.md and docs/cli.md from the code

.PHONY: demo test lint sim bench criteria docs
.DEFAULT_GOAL := test
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

SEEDS ?= 100
START ?= 0
LAYER ?=
JOBS ?= 2

# pip reads [dependency-groups] from 25.1 on; what comes with an older python is older.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[cli]" --group dev
	touch $@

demo: $(READY)
	$(BIN)/python examples/cluster.py

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(if $(FAST),-m "not slow and not proc and not srv")

lint: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layout.py

sim: $(READY)
	$(BIN)/python -m microos.sim $(if $(LAYER),--layer $(LAYER)) \
		$(if $(SEED),--seed $(SEED),--seeds $(START):$(shell expr $(START) + $(SEEDS)))

bench: $(READY)
	$(BIN)/python -m pip install --quiet --group bench
	@for script in benchmarks/[a-z]*.py; do \
		echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

criteria: $(READY)
	@$(BIN)/python tests/criteria.py

docs: $(READY)
	$(BIN)/python docs/generate.py
