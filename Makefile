# Everything runs in .venv, made once from the pins in constraints.txt. PYTHON: 3.10 to 3.12.
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
# One thread a test process: two processes on two cores are faster than threads that wait.
TEST_ENV = $(CACHE) OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
# Nothing is written outside the clone.
export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib
CACHE := XDG_CACHE_HOME=$(CURDIR)/.venv/cache

.PHONY: demo test lint clean

demo: .venv/ready
	$(CACHE) $(BIN)/python tools/demo.py --seed $(SEED)

test: .venv/ready lint
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -q --basetemp .venv/pytest

lint: .venv/ready
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy --cache-dir .venv/mypy

.venv/ready: constraints.txt setup.py
	$(PYTHON) -c "import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 12), \
	    'mmpatch is tested on Python 3.10 to 3.12, not ' + sys.version + '; set PYTHON=...'"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "setuptools>=68,<81" wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
	    --no-build-isolation -e ".[det,seg,export,dev]"
	# The hosts ask for the OpenCV with windows, which needs libraries of a desktop.
	$(BIN)/pip uninstall --quiet --yes opencv-python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt opencv-python-headless
	# yapf, which mmengine imports, writes its grammar on first use, and not atomically: two test
	# processes that start together would read half of it.
	$(CACHE) $(BIN)/python -c "import yapf"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info work_dirs data/toy
