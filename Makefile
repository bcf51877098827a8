# Heatlift. `make` alone prints this help.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
HEATLIFT := $(VENV)/bin/heatlift
PYTEST := $(VENV)/bin/pytest

# Settings of a run. Set them on the command line: make lift DATA=mocap DETECTIONS=exact NAME=try
DATA ?= synthetic
ROOT ?=
DETECTIONS ?=
DETECTOR ?=
PRETRAINED ?= newest
NAME ?=
INPUT ?=
WANDB ?= auto
ARGS ?=

# The pinned allocator makes CPU training 1.3 to 1.6 times faster (docs/performance.md).
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 100000000000
export MALLOC_TOP_PAD_ := 268435456
export WANDB

# Quote a value for the shell, with any characters in it; ~/ at its start is the home folder.
define newline


endef
at_home = $(subst $(newline),,$(subst $(newline)~/,$(HOME)/,$(newline)$1))
quoted = '$(subst ','\'',$(call at_home,$1))'

# DATA is the name of a config in configs/data/ or the path of a YAML file. CONFIG is the name of a
# config in configs/ or a path.
config = $(call quoted,$(if $(filter %.yaml,$(DATA)),$(DATA),data/$(DATA)))
data = -c $(config)
root = $(if $(ROOT),--data.source.init_args.root $(call quoted,$(ROOT)))
name = $(if $(NAME),--name $(call quoted,$(NAME)))
input = $(or $(DETECTOR),$(DETECTIONS),$(if $(filter mocap,$(DATA)),noisy,$(if $(filter synthetic,$(DATA)),newest,exact)))

.PHONY: help install demo heatmap detect pretrain lift predict results box test test-all test-lowest soak bench lint docs notebooks clean

help: ## Show this help
	@echo "make TARGET [DATA=NAME|FILE.yaml] [CONFIG=stage/name] [ROOT=folder] [DETECTIONS=exact|noisy|file]"
	@echo "            [DETECTOR=checkpoint] [PRETRAINED=checkpoint|none] [NAME=name] [INPUT=video] [WANDB=auto|online|offline|off] [ARGS=...]"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1|/' | column -t -s '|'

install: $(VENV)/.installed ## Make .venv and install Heatlift into it

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("heatlift: error: Python %d.%d; 3.11 to 3.13 are supported; set PYTHON=" % v)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@$(VENV)/bin/python -c 'import cv2' || { echo 'heatlift: error: OpenCV does not import; on Debian or Ubuntu run: apt-get install libgl1 libglib2.0-0'; exit 5; }
	@touch $@

demo: install ## Train all stages on rendered people: errors and images in 10 to 20 minutes
	$(HEATLIFT) demo $(ARGS)

heatmap: install ## Train a 2D stage: images to 2D joints
	$(HEATLIFT) heatmap fit -c $(call quoted,$(or $(CONFIG),heatmap/hrnet_narrow)) $(data) $(root) $(name) $(ARGS)

detect: install ## Run a trained 2D stage (DETECTOR=) on images and store its joints in the cache
	$(HEATLIFT) detect $(data) $(root) --detector $(call quoted,$(or $(DETECTOR),newest)) $(ARGS)

pretrain: install ## Pretrain a lifter on masked, noisy 2D projections of motion
	$(HEATLIFT) pretrain fit -c $(call quoted,$(or $(CONFIG),pretrain/mixste_small)) $(data) $(root) $(name) $(ARGS)

lift: install ## Train a lifter (2D to 3D), from the newest pretraining on the same data
	$(HEATLIFT) chain --lifter $(call quoted,$(or $(CONFIG),lift/mixste_small)) --data $(config) $(if $(ROOT),--root $(call quoted,$(ROOT))) $(name) \
	  --detections $(call quoted,$(input)) --pretrained $(call quoted,$(PRETRAINED)) $(if $(ARGS),--also=$(call quoted,$(ARGS)))

predict: install ## Predict the 3D motion of the people in a video: make predict INPUT=clip.mp4
	$(HEATLIFT) predict $(if $(INPUT),$(call quoted,$(INPUT))) $(ARGS)

results: install ## Train the lifters of the open benchmark and write docs/results.md
	$(HEATLIFT) results $(data) $(root) $(ARGS)

box: install ## Train the lifter in the box on the CMU recordings (ROOT=), and measure it
	$(HEATLIFT) box train $(if $(ROOT),--root $(call quoted,$(ROOT))) $(ARGS)

test: install ## Run the tests, at most 12 minutes on 2 cores
	$(PYTEST) -n 2 --dist worksteal -m 'not slow and not soak' -q $(ARGS)

# Without the pinned allocator, which keeps the memory of large networks: 12 GB in each process.
test-all: install ## Run the slow tests too, at most 45 minutes
	env -u MALLOC_MMAP_MAX_ -u MALLOC_TRIM_THRESHOLD_ -u MALLOC_TOP_PAD_ $(PYTEST) -n 2 --dist worksteal -m 'not soak' -q $(ARGS)

# uv is the tool that can choose the lowest versions; it stands in this environment alone.
$(LOWEST)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info[:2] == (3, 11) or sys.exit("heatlift: error: the lowest Python is 3.11; set PYTHON=")'
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[dev]'
	@touch $@

test-lowest: $(LOWEST)/.installed ## Run the tests with the lowest versions of all packages (8 GB on Linux)
	$(LOWEST)/bin/pytest -n 2 --dist worksteal -m 'not slow and not soak' -q $(ARGS)

soak: install ## Run thousands of kills, faults and corrupted files, about an hour
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist worksteal -m soak -q $(ARGS)

bench: install ## Compare speed and results with named references
	@missed=0; for script in $$(grep -l __main__ benchmarks/*.py); do \
		echo "== $$script"; $(VENV)/bin/python $$script || missed=1; done; exit $$missed

lint: install ## Check format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

docs: install ## Draw the images in docs/
	@for script in docs/drawings/*.py; do echo "== $$script"; $(VENV)/bin/python $$script || exit 1; done

notebooks: install ## Execute the notebooks
	$(PYTEST) --nbmake notebooks -q

clean: ## Remove .venv, .venv-lowest and files made by tools; runs/ and cache/ stay
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
