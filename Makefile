# Everything here sets itself up: the virtual environment .venv with the tested versions of
# constraints.txt, made once and renewed when what it depends on changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread a process: two that compete for a core wait on each other for most of their time. The order of the
# files is ours, the longest first: xdist's own begins with those of the most tests.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo light docs families campaign lock sbom audit test test-all lint format clean

setup: $(READY)

# By digests but for torch, whose builds differ by machine; `--no-deps`, because the lock holds what gradio does
# not admit yet (dev/lock.py).
$(READY): setup.cfg setup.py pyproject.toml constraints.txt constraints.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement constraints.lock
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# An edited photograph, a before/after picture and a strip of one action unit, in demo/.
demo: $(READY)
	$(BIN)/python -m magicedit.demo -o demo

# Wheels into dist/: of magicedit, and of magicedit-light, for people who only edit (setup.py).
light: $(READY)
	for light in 0 1; do MAGICEDIT_LIGHT=$$light $(BIN)/python -m pip wheel --quiet --no-deps \
	  --no-build-isolation --wheel-dir dist . || exit; done

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

# Attacks by the sections of benchmarks/attacks/, about an hour, and their table in docs/reliability.md.
campaign: $(READY)
	$(BIN)/python benchmarks/campaign.py --output benchmarks/campaign.json; status=$$?; \
	  $(BIN)/python benchmarks/fill_readme.py && exit $$status

# constraints.lock from constraints.txt and what is installed; asks PyPI for digests.
lock: $(READY)
	$(BIN)/python dev/lock.py

# Tools that look at the project from outside have an environment of their own, which is not locked.
AUDIT := $(VENV)/audit
$(AUDIT)/.ready: dev/audit.txt
	test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --requirement dev/audit.txt
	touch $@

# The parts of the tested environment, CycloneDX JSON.
sbom: $(READY) $(AUDIT)/.ready
	$(AUDIT)/bin/cyclonedx-py environment $(BIN)/python --output-file sbom.json

# Findings must be triaged in SECURITY.md; pip-audit asks for known vulnerabilities over the network.
audit: $(READY) $(AUDIT)/.ready
	$(AUDIT)/bin/bandit --quiet --recursive magicedit train pipelines comfyui --configfile pyproject.toml
	$(AUDIT)/bin/pip-audit --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

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
	rm -rf build dist demo site sbom.json *.egg-info .pytest_cache .ruff_cache
	find magicedit pipelines train tests -type d -name __pycache__ -prune -exec rm -rf {} +
