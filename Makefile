# Every target builds the virtual environment it needs, from Python 3.11 or newer and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint docs bench clean

demo: $(VENV)/.installed-torch ## verify a RadiX-Net and train it truly sparse on the bundled digits
	$(BIN)/topogen train

test: $(VENV)/.installed-dev ## the default test suite
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

test-slow: $(VENV)/.installed-dev ## the tests marked slow and nightly
	$(BIN)/python -m pytest -q -m "slow or nightly"

lint: $(VENV)/.installed-dev ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(VENV)/.installed-dev ## the site, examples executed, warnings are errors
	$(BIN)/sphinx-build -n -W --keep-going -q -b doctest docs docs/_build/doctest
	$(BIN)/sphinx-build -n -W --keep-going -q -b html docs docs/_build/html

bench: $(VENV)/.installed-dev ## the benchmarks of tests/benchmarks, one after the other
	for script in tests/benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) docs/_build dist .pytest_cache .ruff_cache .hypothesis

$(VENV)/.installed-torch: pyproject.toml constraints.txt
	@echo "Installing topogen with PyTorch into $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[torch]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	@echo "Installing topogen with its development tools into $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/.installed-torch $@
