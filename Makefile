# Two commands: `make sweep SWEEP=ablation_lowpass` and `make test`. Each sets up what it needs, once.
PYTHON ?= python3
OUT ?= runs
PORT ?= 5000
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# Values may hold quotes and spaces (WHERE="acquisition == 'A'"): they reach the commands through the environment.
export SWEEP PRESET SET DATA LIMIT WHERE OUT GUIDE

.DEFAULT_GOAL := help
.PHONY: help setup sweep plan status list report ui guide check-data test test-slow bench lint format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12
	@echo
	@echo "sweep and plan take PRESET=laptop|gpu|paper SET='key=value …' DATA=file LIMIT=n WHERE='…' SKIP_BAD=1 RETRY=1;"
	@echo "OUT=folder holds everything a sweep writes (default: runs). CPU=1 at set-up takes CPU-only torch wheels."

setup: $(READY) ## create .venv from the lock file (CPU=1: smaller, CPU-only torch wheels)

# Again only when the lock changes. CPU-only wheels need none of the CUDA packages that the lock pins for the others.
$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV) (several GB with CUDA wheels; CPU=1 takes less)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check \
		$(if $(CPU),--extra-index-url https://download.pytorch.org/whl/cpu torch==$(call pinned,torch)+cpu \
		torchvision==$(call pinned,torchvision)+cpu,-c requirements.lock torch torchvision)
	grep -vE '^(nvidia|cuda|triton|torch(vision)?=)' requirements.lock > $(VENV)/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

pinned = $(shell sed -nE 's/^$(1)==(.*)/\1/p' requirements.lock)

define require_sweep
@test -n "$$SWEEP" || { echo "name a sweep: make $@ SWEEP=ablation_lowpass (make list shows all)"; exit 2; }
endef

options = $${PRESET:+--preset "$$PRESET"} $${SET:+--set "$$SET"} $${DATA:+--data "$$DATA"} \
	$${LIMIT:+--limit "$$LIMIT"} $${WHERE:+--where "$$WHERE"} $(if $(SKIP_BAD),--skip-bad)

sweep: $(READY) ## train SWEEP (name or file), then the comparison table and report; again = go on
	$(require_sweep)
	@$(BIN)/python -m sweeps run "$$SWEEP" --out "$$OUT" $(options) $(if $(RETRY),--retry-failed); code=$$?; \
	test $$code -eq 2 || $(BIN)/python -m analysis report "$$SWEEP" --out "$$OUT"; exit $$code

plan: $(READY) ## what SWEEP would do; starts nothing
	$(require_sweep)
	@$(BIN)/python -m sweeps plan "$$SWEEP" --out "$$OUT" $(options)

status: $(READY) ## how far SWEEP is, from another terminal
	$(require_sweep)
	@$(BIN)/python -m sweeps status "$$SWEEP" --out "$$OUT"

list: $(READY) ## the sweeps and their questions
	@$(BIN)/python -m sweeps list

report: $(READY) ## table and report of SWEEP from what MLflow holds
	$(require_sweep)
	@$(BIN)/python -m analysis report "$$SWEEP" --out "$$OUT"

ui: $(READY) ## MLflow UI on 127.0.0.1 over the store in OUT
	$(BIN)/mlflow ui --backend-store-uri "sqlite:///$(abspath $(OUT))/mlflow.db" --host 127.0.0.1 --port $(PORT)

guide: $(READY) ## edit GUIDE (name or file) on a local page, with pictures of DATA if given
	@test -n "$$GUIDE" || { echo "name a guide: make guide GUIDE=marrow, or a file; DATA=… shows its cells"; exit 2; }
	@$(BIN)/python -m guided guide edit "$$GUIDE" $${DATA:+--data "$$DATA"}

check-data: $(READY) ## counts, duplicates, leakage and stain of DATA; page in OUT/data_check.html
	@test -n "$$DATA" || { echo "name a data set: make check-data DATA=folder or manifest.csv"; exit 2; }
	@$(BIN)/python -m guided data check "$$DATA" --page "$$OUT/data_check.html"

test: $(READY) ## the tests (minutes)
	$(BIN)/python -m pytest

test-slow: $(READY) ## the tests that take longer: kills, whole sweeps
	$(BIN)/python -m pytest -m slow

bench: $(READY) ## each part beside its reference: table and bench.json (minutes); GPU=1, SCALING=1 add parts
	$(BIN)/python -m tests.bench $(if $(GPU),--gpu) $(if $(SCALING),--scaling)

lint: $(READY) ## ruff, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff format and mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## delete .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
