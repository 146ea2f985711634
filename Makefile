# make demo       train, evaluate and report on the simulated log that ships with the project
# make test       run the fast tests, one worker per core, at most four; ARGS goes to pytest: make test ARGS='-x'
# make test-all   the same with the slow suites
# make lint       formatter, linter and type checker
# make clean      remove .venv and caches; run folders stay
# Each makes its own .venv with $(PYTHON), and installs again only when the requirements or the
# Python version changed.

PYTHON ?= python3
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# The stamps carry the Python version: another PYTHON means another environment, never a mixed one.
INSTALLED := $(VENV)/installed-$(VERSION)
INSTALLED_TEST := $(VENV)/installed-test-$(VERSION)
# Bytecode is compiled when a module is first imported: most of what is installed never is.
PIP := $(RUN) -m pip install --quiet --no-compile --disable-pip-version-check
# The longest files start first, so that no worker is left with one at the end.
PYTEST := $(RUN) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile \
  --no-loadscope-reorder

.PHONY: demo test test-all lint clean

demo: $(INSTALLED)
	@echo 'A simulated log, semantic IDs, training, a report: five to six minutes on two idle cores.'
	@$(RUN) -m rolegen_jax train --experiment=demo --workdir=runs/demo

test: $(INSTALLED_TEST)
	$(PYTEST) -m 'not slow' $(ARGS)

test-all: $(INSTALLED_TEST)
	$(PYTEST) $(ARGS)

lint: $(INSTALLED_TEST)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'Python 3.11 or later is needed; $(PYTHON) is $(or $(VERSION),not found).' \
	    'Name another: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12'; exit 1; }
	@echo 'Installing requirements.txt into $(VENV) (Python $(VERSION)); the first time takes minutes ...'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) -r requirements.txt && $(PIP) --no-deps --editable .
	@touch $@

$(INSTALLED_TEST): $(INSTALLED) requirements-test.txt
	@echo 'Installing requirements-test.txt into $(VENV) ...'
	@$(PIP) -r requirements.txt -r requirements-test.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
