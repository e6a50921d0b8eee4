# Two commands do the work on a bare machine that has Python >= 3.11:
#   make run    create .venv, install, execute every chapter at its smoke profile into build/
#   make test   create .venv, install, run the unit tests and compare the chapters' outputs
# With an environment of your own (pip or conda): `pip install -e ".[test]"`, then use the
# `nas-workbook` command that these targets call.

VENV   ?= .venv
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done),python3)
BIN    := $(VENV)/bin
READY  := $(VENV)/.nas-workbook-installed

.PHONY: help run test lint lab install clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

run: $(READY)
	@$(BIN)/nas-workbook run && echo "Next: $(BIN)/nas-workbook lab (or 'source $(BIN)/activate' once, then nas-workbook lab)"

test: $(READY)
	$(BIN)/nas-workbook test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: $(READY)
	$(BIN)/nas-workbook lab

install: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "Python >= 3.11 is needed, this is %d.%d: make PYTHON=/path/to/python3.12 ..." % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "cannot create $(VENV): install the venv module of $(PYTHON) (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

clean:
	rm -rf build
