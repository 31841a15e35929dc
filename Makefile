# make demo   complete the bundled pictures with the embedded model (installs the package first)
# make test   style, types, build, tests, installation: the test job of CI
# make study  pretrain five shapes on CIFAR-10 and compare loss with probe accuracy (-j2: two runs side by side)
# make docs   the documentation site, into site/, with every link checked
# make setup  the environment for development, in .venv

VENV := .venv
unexport PYTHONDONTWRITEBYTECODE # modules are compiled once, not at every start
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
DEMO := $(BIN)/nextpixel complete src/nextpixel/assets/pictures --keep 0.5 -n 4 --seed 0 --speed exact --out demo.png

STUDY_DATA ?= data/cifar10
STUDY_SHAPES := 2x32 3x64 4x96 5x144 7x192
STUDY_SEEDS := 0 1 2
STUDY_RUNS := $(foreach seed,$(STUDY_SEEDS),$(foreach shape,$(STUDY_SHAPES),runs/study/$(shape)-seed$(seed)))
STUDY_ENDS := $(addsuffix /step_0001280/config.json,$(STUDY_RUNS))

.PHONY: demo study study-data setup test format docs notebooks clean
.PRECIOUS: runs/study/%/step_0001280/config.json

demo: $(VENV)/.core-installed
	$(DEMO)
	@echo "The completed pictures are in $(CURDIR)/demo.png"

# After an interruption it resumes: finished runs are left alone, others resumed, measured checkpoints kept.
study: $(STUDY_ENDS)
	$(BIN)/nextpixel study $(STUDY_RUNS) --data $(STUDY_DATA) --out runs/study/found --threads 1 \
	  --train-images 1500 --test-images 1500 --dtype int8

study-data:
	@test -e $(STUDY_DATA) || { echo "$(STUDY_DATA) is not there: fetch it with" \
	  "$(BIN)/python benchmarks/fetch_datasets.py cifar10 --out data, or name another with STUDY_DATA=" >&2; exit 1; }

runs/study/%/step_0001280/config.json: | $(VENV)/.dev-installed study-data
	@mkdir -p runs/study
	@if [ -f runs/study/$*/run.json ]; then $(BIN)/nextpixel pretrain --resume runs/study/$*; \
	else $(BIN)/nextpixel pretrain $(STUDY_DATA) --split train --out runs/study/$* \
	  --recipe benchmarks/study/$(firstword $(subst -seed, ,$*)).toml --seed $(lastword $(subst -seed, ,$*)); fi

setup: $(VENV)/.dev-installed

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2 --dist loadgroup -m "browser or install"

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is in $(CURDIR)/site: $(BIN)/mkdocs serve shows it"

notebooks: $(patsubst %.py,%.ipynb,$(filter-out %/execute.py,$(wildcard docs/notebooks/*.py)))

docs/notebooks/%.ipynb: docs/notebooks/%.py | $(VENV)/.docs-installed
	$(BIN)/python docs/notebooks/execute.py $<

clean:
	rm -rf $(VENV) dist site demo.png .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@for python in python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Creating $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "No Python 3.11 or newer with venv was found: install one (on Debian: python3 and python3-venv)." >&2; \
	exit 1

# torch comes first and pinned: the rest then finds its range satisfied.
$(VENV)/.core-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing nextpixel into $(VENV): a minute or more, torch is large"
	$(PIP) $(TORCH)
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.core-installed
	$(PIP) --editable '.[dev,track]'
	@touch $@

$(VENV)/.docs-installed: $(VENV)/.dev-installed
	$(PIP) --editable '.[docs]'
	@touch $@
