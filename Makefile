# make setup   a virtual environment with the `a0backup` command in it
# make install the same for a machine that makes backups: without the tools of development
# make demo    a simulated three-node fleet, backed up for real
# make test    the tests to run before every commit
# make test-all     every test, with real servers and browser, and how much of the core the quick ones cover
# make test-faults  every kill and fault, and the table of what was tried
# make mutants      changes the code that decides, bit by bit, and names each change that no test noticed
# make lint    ruff, format check and mypy
# make lock    resolve the dependencies anew (needs uv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Of pytest-xdist. Most tests wait for processes, so that more of them than cores keep the cores busy.
WORKERS ?= 4
test-faults: WORKERS := 6
PYTEST = -m pytest -n $(WORKERS) --dist

.PHONY: setup install demo test test-rest test-all test-faults mutants lint format lock clean

setup: $(STAMP)

# Hashes for everything that is installed, build backend included; nothing is built in isolation behind them. The lock is
# whole, so nothing is left to resolve: pip would look for newer versions where a package is asked for with its extras.
$(STAMP): requirements.lock pyproject.toml | $(BIN)/pip
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

# Not python: Debian without python3-venv leaves that behind, and no pip.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("a0backup needs Python 3.11 or later, this is " + sys.version.split()[0] + "; say: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv --clear $(VENV)

# As the image: all that the lock names is checked by its hash, and what the package asks for installed from that alone; by
# force, so that an older lock can be gone back to. Then the package as `setup` leaves it, beside its prefect.yaml.
install: | $(BIN)/pip
	@echo "installing into $(VENV) ..."
	@rm -rf $(VENV)/wheels
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --dest $(VENV)/wheels -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-index --find-links $(VENV)/wheels hatchling ".[server,docker,kubernetes]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@rm -r $(VENV)/wheels

demo: setup
	@$(BIN)/a0backup demo

test: setup
	@$(BIN)/python $(PYTEST) worksteal --extent quick

# What `test-all` runs on top of `test`.
test-rest: setup
	@$(BIN)/python $(PYTEST) loadgroup --extent rest

# The core is measured in the quick tests alone: in the others it would slow each server and worker that they start.
test-all: setup
	@rm -f .coverage .coverage.*
	@status=0; $(BIN)/coverage run $(PYTEST) worksteal --extent quick || status=1; \
		$(BIN)/python $(PYTEST) loadgroup --extent rest || status=1; \
		$(BIN)/coverage combine --quiet && $(BIN)/coverage report || status=1; exit $$status

test-faults: setup
	@A0BACKUP_FAULTS=1 $(BIN)/python $(PYTEST) loadgroup tests/system/faults tests/system/redaction

mutants: setup
	@rm -rf mutants
	@$(BIN)/mutmut run
	@$(BIN)/mutmut results

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock:
	uv pip compile pyproject.toml --group dev --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --upgrade -q -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* mutants
