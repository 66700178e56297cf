# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPES := build/types

.PHONY: demo test test-lowest test-slow test-full lint types format clean

demo: $(READY)
	$(BIN)/ditc demo

test: $(READY)
	$(BIN)/python -m pytest -n auto -m "not slow and not full"

# As on a processor with AVX2 alone, whatever this one has: torch and oneDNN read these at their load.
test-lowest: $(READY)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
	  $(BIN)/python -m pytest -n auto -m "processor and not slow and not full"

test-slow: $(READY)
	$(BIN)/python -m pytest -n auto -m slow

# What takes longer than CI may: about 45 minutes on two cores. Run it before a release.
test-full: $(READY)
	$(BIN)/python -m pytest -n auto -m full

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers do not follow the map from passes/ and backends/ into the package, so the built tree
# is checked, and must hold as many files as the sources.
types: $(READY)
	rm -rf $(TYPES)
	$(BIN)/python -c "import setuptools; setuptools.setup()" -q build_py -d $(TYPES)
	test "$$(find $(TYPES) -name '*.py' | wc -l)" -eq \
	  "$$(find dit_compile passes backends -name '*.py' | wc -l)"
	cd $(TYPES) && $(abspath $(BIN))/python -m mypy --config-file $(abspath pyproject.toml) \
	  -p dit_compile

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)
