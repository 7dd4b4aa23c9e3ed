# Every target makes .venv first, so that each works on a bare machine with Python 3.11+ and a network.
PYTHON ?= python3
STORE ?= directory
WORKERS ?= 2
SEED ?= 0
SIM ?=
# For example "--gigabytes 0.1 --repeats 1", to see whether everything runs.
BENCH ?=
FUZZ ?=
BUGS ?=
DAMAGE ?=
BIN := .venv/bin
STAMP := .venv/.installed-for-pyproject
QUESTIONS := save lazy cuda load unchanged memory gil s3 ranks growth planning history records fragments tiles wan takeover killed torn
SOURCES := fwstore integrations tools tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-sites test check format tighten coverage soak sim fuzz bugs reliability bench-quick bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with everything that development needs

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fwstore needs Python 3.11 or newer; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once; torch is large) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Train, kill in mid-save, resume on other world sizes, compare (STORE=directory|s3)
	@$(BIN)/python -m fwstore_demo --store $(STORE)

demo-sites: $(STAMP) ## Lose a site in mid-training, resume at another, heal (STORE=directory|s3)
	@$(BIN)/python -m fwstore_demo --sites --store $(STORE)

test: $(STAMP) ## Run all tests but the soak
	@$(BIN)/python -m pytest -q -m "not soak" -n $(WORKERS) --dist loadgroup

check: $(STAMP) ## Lint, formatting, types, layers, the architecture ratchet
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --durations=0 tests/architecture

format: $(STAMP) ## Rewrite the sources in the one format
	$(BIN)/ruff check --fix --quiet $(SOURCES) || true
	$(BIN)/ruff format $(SOURCES)

tighten: $(STAMP) ## Lower the architecture ratchet to what the sources now reach
	@PYTHONPATH=tests $(BIN)/python -c "from architecture.ratchet import main; main()"

coverage: $(STAMP) ## Run all tests but the soak and count the lines and branches of what is shipped that they reach
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[coverage]'
	@$(BIN)/python -m pytest -q -m "not soak" -n $(WORKERS) --dist loadgroup --cov --cov-report=term --cov-report=json:build/coverage.json
	@PYTHONPATH=tests $(BIN)/python -m support.figures build/coverage.json

soak: $(STAMP) ## Ten times the kill loops, simulations and damage of the tests; an hour or more
	@FWSTORE_SOAK=10 $(BIN)/python -m pytest -q -m "soak or stateful" --timeout 14400 -o faulthandler_timeout=0 -n $(WORKERS) --dist loadgroup

sim: $(STAMP) ## Play one seed of the simulator again (SEED=7), or many (SEED=0 SIM="--seeds 1000")
	@PYTHONPATH=tests $(BIN)/python -m sim $(SEED) $(SIM)

fuzz: $(STAMP) ## Coverage-guided fuzzing of every parser and importer, 10 minutes each (FUZZ="60 leaf dcp": seconds, targets)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@PYTHONPATH=tests $(BIN)/python -m support.fuzz $(FUZZ)

bugs: $(STAMP) ## Switch every named bug on under every suite; an hour (BUGS="fence vote": parts of their names)
	@PYTHONPATH=tests $(BIN)/python -m sim.sensitivity $(BUGS)

reliability: $(STAMP) ## Damage checkpoints of others, then docs/reliability.md from that and what soak, fuzz and bugs counted
	@PYTHONPATH=tests $(BIN)/python -m benchmarks.damage $(DAMAGE)
	@PYTHONPATH=tests $(BIN)/python -m benchmarks.reliability

bench-quick: $(STAMP) ## Blocked, durable and load times beside torch DCP and safetensors; minutes
	@$(BIN)/python -m benchmarks.quick

bench: $(STAMP) ## Every question of benchmarks/ beside every peer, then docs/benchmarks.md; hours, on a machine left alone
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@for question in $(QUESTIONS); do $(BIN)/python -m benchmarks.$$question $(BENCH) || exit 1; done
	@$(BIN)/python -m benchmarks.report

clean: ## Remove what the other targets made
	rm -rf .venv build .demo .bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .fuzz *.egg-info
