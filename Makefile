# Every target but `gpu` installs what it needs into .venv, from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := $(BIN)/python -W ignore -m monai.bundle run
export OMP_NUM_THREADS ?= 2
export MPLBACKEND := Agg

LABEL_VENV := .venv-label
LABEL_STAMP := $(LABEL_VENV)/.installed

.PHONY: install release demo test test-all faults lint docs bench experiments experiments-small gpu-pack gpu label-env label-demo clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# one process a core, each with the tests of a file in their order
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test: install
	$(PYTEST) -m "not slow and not gpu"

test-all: install label-env
	$(PYTEST)

# kills, damage, full disks, two writers, servers; WRITE=--write-counts puts its table into docs/reliability.md
WRITE ?=
faults: install label-env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults $(WRITE)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# these want a folder or a name of a file: see their own help; `resuming` is a part of them
NEED_DATA := body_depths demo_picture few_labels head_distributions neighbour_strength neighbour_training own_statistics resuming streamed_heads tissue_training voxelwise_training
bench: install
	for script in $(filter-out $(NEED_DATA:%=benchmarks/%.py),$(wildcard benchmarks/*.py)); do \
		$(BIN)/python $$script || exit 1; done

# models of any protocol from nothing, resumable, into runs/release/models; ONLY="fod tissue fractions" makes those of whole
# heads, too; heads of individuals with HEADS="--anatomy DIR --peaks FILE --fa FILE"
RELEASE ?= runs/release
ONLY ?= fod
HEADS ?=
release: install
	$(BIN)/python bundle/models/make.py $(RELEASE) --only $(ONLY) $(HEADS)

# the papers' comparisons, for one GPU machine (SIZE=cpu: hours on two cores); continues where it stopped and rewrites
# docs/results.md
SIZE ?= full
experiments: install
	$(BIN)/python -W ignore -m benchmarks.experiments all --size $(SIZE)

# all of them in minutes, hardly trained, beside the results in docs/
experiments-small: install
	$(BIN)/python -W ignore -m benchmarks.experiments all --size small --out runs/experiments/results

# tests, benchmarks and experiments that want a GPU, on a machine with one and no network (docs/deployment.md): `gpu-pack`
# where pip has its index, then, there, `gpu`, with the Python that has torch
MINUTES ?= 12
gpu-pack: install
	$(BIN)/python -m benchmarks.gpu pack

gpu:
	$(PYTHON) -m benchmarks.gpu run --minutes $(MINUTES)

# the main job; a new demo replaces the old one. WEIGHTS=released starts from the released weights instead of pretraining
# `tiny` itself: two labelled heads, and the same from scratch beside it
WEIGHTS ?= none
ifeq ($(WEIGHTS),released)
ARGS := configs/args/released
PHANTOM := --subjects 6 --seed 900 --anatomy mni152 --scheme clinical-32 --shape 72 88 72 --snr 15 20
else
ARGS := configs/args
PHANTOM := --subjects 12 --seed 0
endif

demo: install
	rm -rf demo
	$(BIN)/dmri-monai phantom --out demo/data $(PHANTOM)
ifeq ($(WEIGHTS),released)
	$(RUN) training --args_file $(ARGS)/scratch.json
else
	$(RUN) pretraining --args_file $(ARGS)/pretrain.json
endif
	$(RUN) training --args_file $(ARGS)/train.json
	$(RUN) evaluating --args_file $(ARGS)/evaluate.json
	$(RUN) inferring --args_file $(ARGS)/inference.json
	@echo "report: demo/runs/inference/report.html   runs: demo/runs/mlruns.db"

# MONAI Label has an environment of its own
label-env: $(LABEL_STAMP)

$(LABEL_STAMP): requirements-label.lock pyproject.toml
	test -x $(LABEL_VENV)/bin/python || $(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-label.lock
	$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# serves the demo's model and data, before any demo the released model and three heads, on 127.0.0.1 until Ctrl-C
PORT ?= 8000
DEMO_MODEL := $(wildcard demo/runs/training/model.pt)
LABEL_MODEL := $(or $(DEMO_MODEL),bundle/models/tissue-shells.pt)
LABEL_DATA := $(if $(DEMO_MODEL),demo/data,demo/label/data)
LABEL_PHANTOM := --subjects 3 --seed 900 --anatomy mni152 --scheme clinical-32 --shape 72 88 72 --snr 15 20

label-demo: install label-env
	rm -rf demo/label
	test -n "$(DEMO_MODEL)" || $(BIN)/dmri-monai phantom --out $(LABEL_DATA) $(LABEL_PHANTOM)
	$(BIN)/dmri-monai label-studies $(LABEL_DATA) -o demo/label/studies --labels dseg
	cd demo/label && MONAI_ZOO_SOURCE=local PYTHONPATH=../../tests/label_server \
		../../$(LABEL_VENV)/bin/python -m monailabel.main apps --download --name monaibundle --output apps
	$(BIN)/dmri-monai label-bundle $(LABEL_MODEL) -o demo/label/apps/monaibundle/model/dmri_tissue
	cd demo/label && MONAI_ZOO_SOURCE=local MONAI_LABEL_DATASTORE_FILE_EXT='["*.nii.gz"]' \
		PYTHONPATH=../../tests/label_server ../../$(LABEL_VENV)/bin/python -m monailabel.main start_server \
		--app apps/monaibundle --studies studies --host 127.0.0.1 --port $(PORT) --conf models dmri_tissue

clean:
	rm -rf $(VENV) $(LABEL_VENV) demo build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
