# make train   install everything, train a Sparse DETR, print its AP and draw pictures (minutes, no GPU needed)
# make test    check lint, format and types, and run the tests
# make setup   make the environment only
# make lint    check lint, format and types only;  make format: correct lint and format
# make docs    build the site into build/site; a warning, such as a broken link, is an error (`make test` builds it too)
# make sanitize   test the CPU kernels with the address and undefined behaviour sanitizers
# make kill-loop  kill a small training fifty times, every third time during a write: it must end the same
# make same-losses BASE=main   train shortly at the commit BASE and now: every loss and weight must be the same
# make clean   remove builds and caches;  make clean-all: also environment, sample data and the quick run
#
# Variables: PYTHON=python3.12      the Python (3.10 or later) of a new environment
#            VENV=path              another environment; torch and Detectron2 in it are kept
#            TORCH_SPEC="torch==X torchvision==Y"
#            SPARSE_DETR_BUILD_OPS=none|cpu|cuda   which native libraries to build; see ops/build.py
#            TEST_OPTIONS="-k golden"   options of pytest; they replace the default, two processes
#            QUICK_CONFIG=configs/quick/focus_detr_mnv2.py   train another model, into output/focus_detr_mnv2
#            QUICK_OPTIONS="train.max_iter=100 train.seed=1"   overrides of the quick config
#            SAME_LOSSES_OPTIONS="--all --iterations 20"   options of scripts/same_losses.py

PYTHON ?= python3
VENV ?= .venv
TORCH_SPEC ?= torch==2.14.1 torchvision==0.29.1

TEST_OPTIONS ?= --numprocesses 2 --dist loadscope --no-loadscope-reorder
SAMPLE ?= datasets/sample
QUICK_CONFIG ?= configs/quick/sparse_detr_mnv2.py
QUICK_OUTPUT ?= output/$(patsubst sparse_detr_mnv2,quick,$(basename $(notdir $(QUICK_CONFIG))))

RUN := $(VENV)/bin/python
PIP_LOUD := $(RUN) -m pip install --disable-pip-version-check
PIP := $(PIP_LOUD) --quiet
# One stamp for each checkout, so that two checkouts can share an environment.
STAMP := $(VENV)/.sparse_detr-$(firstword $(shell echo "$(CURDIR)" | cksum))
NATIVE := sparse_detr/ops/_native/build.json
OPS_SOURCES := ops/build.py $(wildcard ops/csrc/*.h ops/csrc/cpu/* ops/csrc/cuda/*)
MODEL := $(QUICK_OUTPUT)/model_final.pth
PICTURES := $(QUICK_OUTPUT)/pictures
TRAINED := $(QUICK_OUTPUT)/.trained
REUSED := $(if $(wildcard $(TRAINED)),trained and evaluated before: reused; to start anew: rm -r $(QUICK_OUTPUT))

export SPARSE_DETR_SAMPLE := $(SAMPLE)
export PIP_NO_INPUT := 1

.PHONY: train test setup sample-data lint format docs sanitize kill-loop same-losses clean clean-all

train: $(PICTURES)/.complete
	@echo "$(REUSED)"
	@$(RUN) scripts/report_quick_run.py --output $(QUICK_OUTPUT) --pictures $(PICTURES)

$(TRAINED): | setup sample-data
	@echo "==> Training $(QUICK_CONFIG); an interrupted run is resumed"
	@$(RUN) train_net.py --config-file $(QUICK_CONFIG) --resume --output-dir $(QUICK_OUTPUT) $(QUICK_OPTIONS)
	@touch $@

$(PICTURES)/.complete: $(TRAINED)
	@echo "==> Drawing detections and kept tokens on the held-out tiles"
	@$(RUN) -m sparse_detr.cli demo --config-file $(QUICK_CONFIG) --weights $(MODEL) --input $(SAMPLE)/val --output $(PICTURES)
	@touch $@

test: lint sample-data
	@echo "==> Tests"
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RUN) -m pytest $(TEST_OPTIONS)

lint: setup
	@echo "==> Lint, format, types"
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: setup
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

setup: $(STAMP) $(NATIVE)

# An editable install builds the libraries too, but pip hides its output.
$(NATIVE): $(OPS_SOURCES) | $(STAMP)
	@$(RUN) ops/build.py || { rm -f $@; exit 1; }

docs: setup
	@echo "==> Site"
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

sanitize: setup
	@$(RUN) ops/sanitize.py

kill-loop: setup
	@$(RUN) scripts/kill_loop.py

same-losses: setup sample-data
	@test -n "$(BASE)" || { echo "error: no commit to compare with; name one: make same-losses BASE=main"; exit 2; }
	@$(RUN) scripts/same_losses.py $(BASE) $(SAME_LOSSES_OPTIONS)

sample-data: setup
	@$(RUN) -m sparse_detr.data.sample --output $(SAMPLE)

$(STAMP): pyproject.toml setup.py scripts/install_detectron2.py
	@echo "==> [1/5] Environment $(VENV)"
	@test -x $(RUN) || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is missing or older than 3.10; name a newer one: make PYTHON=python3.12"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(PIP) "setuptools<81" wheel
	@echo "==> [2/5] PyTorch (a large download unless it is there: $(TORCH_SPEC))"
	@$(RUN) -c "import torch, torchvision" 2>/dev/null || $(PIP_LOUD) $(TORCH_SPEC)
	@echo "==> [3/5] Native libraries of the attention operation (without them it runs in PyTorch, slower)"
	@$(RUN) ops/build.py
	@echo "==> [4/5] This package and what it needs"
	@$(PIP) --no-build-isolation --editable ".[dev]"
	@$(PIP) --no-deps "sahi>=0.11" "shapely>=2"  # for tests; by themselves they bring a second OpenCV
	@echo "==> [5/5] Detectron2"
	@$(RUN) scripts/install_detectron2.py
	@touch $@

clean:
	rm -rf build dist *.egg-info sparse_detr/ops/_native .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
	@echo "kept: $(VENV), $(SAMPLE), $(QUICK_OUTPUT) (make clean-all removes .venv, datasets/sample and output/quick)"

# Only the default folders: one that was given as VENV=, SAMPLE= or QUICK_OUTPUT= may hold other files.
clean-all: clean
	rm -rf .venv datasets/sample output/quick
