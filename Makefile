# Every target installs what it needs into .venv, from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := $(BIN)/python -W ignore -m monai.bundle run
export OMP_NUM_THREADS ?= 2
export MPLBACKEND := Agg

.PHONY: install demo test test-all lint docs bench clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

test: install
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: install
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

# the main job; a new demo replaces the old one
demo: install
	rm -rf demo
	$(BIN)/dmri-monai phantom --out demo/data --subjects 12 --seed 0
	$(RUN) pretraining --args_file configs/args/pretrain.json
	$(RUN) training --args_file configs/args/train.json
	$(RUN) inferring --args_file configs/args/inference.json
	$(RUN) evaluating --args_file configs/args/evaluate.json
	@echo "report: demo/runs/inference/report.html   runs: demo/runs/mlruns.db"

clean:
	rm -rf $(VENV) demo build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
