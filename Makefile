# Every target sets up what it needs by itself. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
DEMO_SUBJECTS ?= 100
DEMO_EPOCHS ?= 160
DEMO_WARMUP ?= 145
DEMO_OUTPUT ?= output/demo
MODEL_SUBJECTS ?= 400
MODEL_OUTPUT ?= output/model
# Further keys of evaluate.json, such as --ceiling_epochs 1.
MODEL_EVALUATION ?=
# What make explore shows: weights with their calibration, the overlays of their training, and further keys of explore.json,
# such as EXPLORE_ARGS="--dataset_dir <scans> --datalist <cohort>/datalist.json --section test".
MODEL ?= bundle/models/model.pt
EXPLORE_OVERLAYS ?= compact.json
EXPLORE_ARGS ?=
BENCH_OUTPUT ?= output/benchmarks
BENCH_SUBJECTS ?= 200 1000 5000
SOAK_OUTPUT ?= output/soak
# Such as SOAK_ARGS="--seeds 2 --epochs 10".
SOAK_ARGS ?=

# A copy of the schema of metadata.json, which the model zoo downloads.
SCHEMA ?= $(wildcard ../shared/schema/meta_schema_20240725.json)

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
LOWEST := .venv-lowest
CONFIGS := bundle/configs
# All phantoms come from one scanner, so that they need less augmentation than patients do, and more updates per epoch.
DEMO_CONFIGS := '$(CONFIGS)/compact.json','$(CONFIGS)/phantom.json'
RUN := $(PY) -m monai.bundle run

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup weights demo explore browser test lowest mutants bench soak model package lint clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '  make %-9s%s\n' "$$name" "$$text"; done
	@echo
	@echo '  Variables: PYTHON=$(PYTHON) VENV=$(VENV) DEMO_SUBJECTS=$(DEMO_SUBJECTS) DEMO_EPOCHS=$(DEMO_EPOCHS) DEMO_WARMUP=$(DEMO_WARMUP)'

setup: $(READY) ## create the environment with all dependencies
	@echo '[setup] $(VENV) is up to date'

$(PY):
	@echo '[setup] creating $(VENV) with $(PYTHON)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)

# Not an editable installation: there is no package whose edits it could follow, only the list of dependencies.
# One command resolves torch, torchvision and the rest together, so that no later step can replace one of them.
$(READY): pyproject.toml | $(PY)
	@echo '[setup] installing the dependencies into $(VENV) (torch is large: some minutes)'
	@$(PY) -m pip install -qq --disable-pip-version-check '.[dev]'
	@rm -rf build ar_sivae.egg-info
	@$(PY) -c 'import torch, torchvision, monai; print(f"[setup] ready: torch {torch.__version__}, " \
		f"torchvision {torchvision.__version__}, MONAI {monai.__version__}, CUDA {torch.cuda.is_available()}")'
	@touch $@

weights: $(READY) ## fetch the weights of the perceptual networks
	@echo '[weights] fetching the trunks of the perceptual distances, unless they are here (64 MB)'
	@$(PY) -m scripts.perceptual

demo: weights ## phantom hearts, a short training, and inference, in output/demo
	@echo '[demo] 1/4 drawing $(DEMO_SUBJECTS) phantom hearts'
	@$(RUN) phantom --config_file $(CONFIGS)/cohort.json \
		--dataset_dir $(DEMO_OUTPUT)/phantom --subjects $(DEMO_SUBJECTS)
	@echo '[demo] 2/4 checking the scans and measuring their volumes (one phantom breaks each rule, on purpose)'
	@$(RUN) prepare --config_file $(CONFIGS)/cohort.json \
		--dataset_dir $(DEMO_OUTPUT)/phantom --output_dir $(DEMO_OUTPUT)
	@echo '[demo] 3/4 training for $(DEMO_EPOCHS) epochs, the first $(DEMO_WARMUP) without generated images'
	@$(RUN) training --config_file "['$(CONFIGS)/train.json',$(DEMO_CONFIGS)]" \
		--dataset_dir $(DEMO_OUTPUT)/phantom --output_dir $(DEMO_OUTPUT) \
		--max_epochs $(DEMO_EPOCHS) --warmup_epochs $(DEMO_WARMUP)
	@echo '[demo] 4/4 encoding the test subjects with the trained model'
	@$(RUN) run --config_file "['$(CONFIGS)/inference.json','$(CONFIGS)/compact.json']" \
		--dataset_dir $(DEMO_OUTPUT)/phantom --output_dir $(DEMO_OUTPUT) \
		--datalist $(DEMO_OUTPUT)/datalist.json --section test
	@echo '[demo] done:'
	@echo '  model        $(DEMO_OUTPUT)/model.pt'
	@echo '  codes        $(DEMO_OUTPUT)/codes.csv, volumes with intervals in $(DEMO_OUTPUT)/attributes.csv'
	@echo '  a subject    $(DEMO_OUTPUT)/<subject>/page.png, and its reconstruction as NIfTI'
	@echo '  pictures     $(DEMO_OUTPUT)/pictures/reconstructions.png, $(DEMO_OUTPUT)/pictures/traversals.png'
	@echo '  cohort       $(DEMO_OUTPUT)/cohort.csv'
	@echo '  TensorBoard  $(VENV)/bin/tensorboard --logdir $(DEMO_OUTPUT)/tensorboard'

explore: $(READY) ## change hearts in the browser, on this machine alone (MODEL=... EXPLORE_OVERLAYS="compact.json stack.json")
	@$(RUN) explore --config_file "[$(foreach name,inference.json $(EXPLORE_OVERLAYS) explore.json,'$(CONFIGS)/$(name)',)]" \
		--ckpt_path $(MODEL) $(EXPLORE_ARGS)

# Debian's: the tests of pages open them in it. Not a package of Python, so that no environment can bring it.
browser:
	@command -v chromedriver >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo '[test] installing Chromium through apt: tests open pages in it'; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null && exit 0; \
	fi; \
	echo '[test] no Chromium here (apt-get install chromium-driver): the tests that open pages in it are skipped'

test: weights browser ## run the tests (PYTEST_ARGS="-k losses" chooses some)
	@echo '[test] running pytest'
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

# uv finds the lower bounds, pip installs: with --no-deps, what pyproject.toml does not name is free.
lowest: ## run the tests with the lowest versions that pyproject.toml allows (PYTHON=python3.10)
	@$(MAKE) --no-print-directory $(LOWEST)/bin/python VENV=$(LOWEST)
	@$(LOWEST)/bin/python -m pip install -qq --disable-pip-version-check uv
	@$(LOWEST)/bin/python -m uv pip compile --quiet --resolution lowest-direct --no-deps --extra dev \
		--output-file $(LOWEST)/constraints.txt pyproject.toml
	@PIP_CONSTRAINT=$(CURDIR)/$(LOWEST)/constraints.txt $(MAKE) --no-print-directory test VENV=$(LOWEST)

mutants: weights ## change losses, transforms and metrics in thousands of places: which do no tests notice? (an hour; resumable)
	@$(PY) -m pip install -qq --disable-pip-version-check 'mutmut>=3.8'
	@OMP_NUM_THREADS=1 $(PY) -m mutmut run
	@$(PY) -m mutmut results

# One after the other: each takes the whole machine, which nobody else should use meanwhile. Results stay in
# docs/benchmarks, those of other machines included, and the page is made of what is there.
bench: weights ## measure speed, memory and scale here, and rebuild docs/benchmarks.md (half an hour)
	@echo '[bench] 1/5 the training step beside the plain transcription of the equations'
	@$(PY) -m tests.benchmarks.step
	@echo '[bench] 2/5 memory of a training step'
	@$(PY) -m tests.benchmarks.memory
	@echo '[bench] 3/5 two processes beside one'
	@$(PY) -m tests.benchmarks.parallel
	@echo '[bench] 4/5 cohorts of $(BENCH_SUBJECTS) subjects'
	@$(PY) -m tests.benchmarks.scale $(BENCH_OUTPUT) --subjects $(BENCH_SUBJECTS)
	@echo '[bench] 5/5 the training step on a GPU, if there is one'
	@$(PY) -m tests.benchmarks.gpu || echo '[bench] not measured'
	@$(PY) -m tests.benchmarks.report

soak: weights ## train all four methods from ten seeds each, and rebuild docs/benchmarks.md (an hour or two; resumable)
	@echo '[soak] 40 trainings; what is finished in $(SOAK_OUTPUT) is not run again'
	@OMP_NUM_THREADS=1 $(PY) -m tests.benchmarks.soak $(SOAK_OUTPUT) $(SOAK_ARGS)
	@$(PY) -m tests.benchmarks.report

# The demo with more phantoms, and the evaluation whose figures stand in the metadata and the card.
model: weights ## train and evaluate the phantom model that the package ships, in bundle/models (40 minutes)
	@$(MAKE) --no-print-directory demo DEMO_SUBJECTS=$(MODEL_SUBJECTS) DEMO_OUTPUT=$(MODEL_OUTPUT)
	@echo '[model] judging it on the test subjects, then copying it to bundle/models'
	@$(RUN) run --config_file "['$(CONFIGS)/train.json',$(DEMO_CONFIGS),'$(CONFIGS)/evaluate.json']" \
		--dataset_dir $(MODEL_OUTPUT)/phantom --output_dir $(MODEL_OUTPUT) $(MODEL_EVALUATION)
	@cp $(MODEL_OUTPUT)/model.pt $(MODEL_OUTPUT)/settings.json $(MODEL_OUTPUT)/calibration.json bundle/models

# PACKAGE_ARGS="--cohort <folder of subjects> --url models/model.pt=https://... --overlay compact.json"
package: $(READY) ## write dist/<bundle>_v<version>.zip and its checksum, unless a subject could be in it
	@echo '[package] checking the bundle, then writing it to dist'
	@$(PY) -m scripts.packaging $(addprefix --schema ,$(SCHEMA)) $(PACKAGE_ARGS)

lint: $(READY) ## check style and formatting
	@echo '[lint] ruff check, then ruff format --check'
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean: ## remove caches and results; the environment and the weights stay
	@echo '[clean] removing caches, output and dist'
	@rm -rf output dist build *.egg-info .pytest_cache .ruff_cache
	@find scripts tests -type d -name __pycache__ -prune -exec rm -rf {} +
