# Everything here sets itself up: the virtual environment .venv with the tested versions of
# constraints.txt, made once and renewed when what it depends on changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread a process: two that compete for a core wait on each other for most of their time. The order of the
# files is ours, the longest first: xdist's own begins with those of the most tests.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo docs families test test-all lint format clean

setup: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# An edited photograph, a before/after picture and a strip of one action unit, in demo/.
demo: $(READY)
	$(BIN)/python -m magicedit.demo -o demo

# docs/ as a site in site/, which opens from the disk: strictly, and without a network.
docs: $(READY)
	$(BIN)/python dev/cli_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Small models of all families into FAMILIES, about an hour of a core each, and their comparison. Resumable.
# DATASET is of `magicedit prepare`; PEOPLE, none of whom may be in it, one folder a person.
FAMILIES ?= families
JOBS ?= 2
families: $(READY)
	@test -n "$(DATASET)" -a -n "$(PEOPLE)" || { echo "make families DATASET=... PEOPLE=... [FAMILIES=families]"; exit 2; }
	$(BIN)/python benchmarks/train_tables.py --protocols families --data $(DATASET) --runs $(FAMILIES) --jobs $(JOBS)
	OMP_NUM_THREADS=1 $(BIN)/magicedit evaluate --protocol families --runs $(FAMILIES) --editor mini \
	  --editor warp --editor copy --data $(PEOPLE) -o $(FAMILIES)/report

test: lint
	$(TEST)

# Also the tests of minutes, and those for a GPU where there is one.
test-all: lint
	$(TEST) -m ""

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What builds and runs leave behind; the environment stays.
clean:
	rm -rf build dist demo site *.egg-info .pytest_cache .ruff_cache
	find magicedit pipelines train tests -type d -name __pycache__ -prune -exec rm -rf {} +
