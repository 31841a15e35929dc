# make demo   complete the bundled pictures with the embedded model (installs the package first)
# make test   everything that CI runs: style, types, build, tests, installation
# make setup  the environment for development, in .venv

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
DEMO := $(BIN)/nextpixel complete src/nextpixel/assets/pictures --keep 0.5 -n 4 --seed 0 --out demo.png

.PHONY: demo setup test format clean

demo: $(VENV)/.core-installed
	$(DEMO)
	@echo "The completed pictures are in $(CURDIR)/demo.png"

setup: $(VENV)/.dev-installed

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/pytest
	$(BIN)/pytest -m install

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist demo.png .mypy_cache .pytest_cache .ruff_cache .hypothesis

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
