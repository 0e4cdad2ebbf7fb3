# make setup        create a virtual environment with the `a0backup` command
# make install      the same for a machine that makes backups, without the development tools
# make demo         back up a simulated three-node fleet for real
# make test         run the tests that must pass before every commit
# make test-all     run every test, with real servers and a browser, and report the quick tests' coverage of the core
# make test-faults  try every kill and fault, with a table of what was tried
# make mutants      change the deciding code bit by bit, and list each change that no test noticed
# make lint         ruff, format check and mypy
# make lock         resolve the dependencies anew (needs uv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Workers of pytest-xdist. Most tests wait for processes, so it takes more workers than cores to keep the cores busy.
WORKERS ?= 4
test-faults: WORKERS := 6
PYTEST = -m pytest -n $(WORKERS) --dist

# A virtual environment whose Python was upgraded or removed below it runs nothing: it is made anew.
$(shell test -e $(BIN)/pip && ! $(BIN)/python -c "import pip" 2>/dev/null && rm -f $(BIN)/pip $(STAMP))

.PHONY: setup install demo test test-rest test-all test-faults mutants lint format lock clean

setup: $(STAMP)

# Everything installed is checked by its hash, the build backend included; no isolated build bypasses the hashes. The lock
# is complete, so nothing is resolved: pip would look for newer versions of a package that is requested with its extras.
$(STAMP): requirements.lock pyproject.toml | $(BIN)/pip
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

# The target is pip, not python: Debian without python3-venv leaves a python behind, but no pip.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("a0backup needs Python 3.11 or later, this is " + sys.version.split()[0] + "; say: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv --clear $(VENV)

# As in the image: everything in the lock is checked by its hash, and the package's requirements are installed from that
# alone. The installation is forced: this allows a return to an older lock. Then the package is installed as by `setup`,
# beside its prefect.yaml.
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

# What `test-all` runs in addition to `test`.
test-rest: setup
	@$(BIN)/python $(PYTEST) loadgroup --extent rest

# Only the quick tests measure the coverage of the core: in the others it would slow each server and worker they start.
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
