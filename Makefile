# Each environment is made once from its pins: .venv from constraints.txt, .venv-lowest from
# constraints-lowest.txt. Only pip's own cache is written outside the clone.
PYTHON ?= python3
PYTHON_LOWEST ?= python3.10
SEED ?= 0
VENV = .venv
INTERPRETER = $(PYTHON)
BIN = $(VENV)/bin
export MPLCONFIGDIR = $(CURDIR)/$(VENV)/matplotlib
CACHE = XDG_CACHE_HOME=$(CURDIR)/$(VENV)/cache
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check -c $(filter constraints%,$^)
PYTEST = $(CACHE) PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m pytest -q --basetemp $(VENV)/pytest
# Two processes of one thread each are faster on two cores than threads that wait for each other.
TEST = OMP_NUM_THREADS=1 $(PYTEST) -n 2

.PHONY: demo test test-lowest gpu lint docs figures clean

demo: .venv/ready
	$(CACHE) $(BIN)/python tools/demo.py --seed $(SEED)

test: .venv/ready lint
	$(TEST)

# The whole suite on the lowest versions that setup.py allows.
test-lowest: VENV = .venv-lowest
test-lowest: .venv-lowest/ready
	$(TEST)

# Tests that take a CUDA device, then the benchmarks.
gpu: .venv/ready
	@$(BIN)/python -c "import sys, torch; \
	    sys.exit(None if torch.cuda.is_available() else 'make gpu: torch finds no CUDA device')"
	$(PYTEST) -k cuda -m 'not process'
	$(CACHE) $(BIN)/python tools/analysis/benchmark.py --device cuda

lint: .venv/ready
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy --cache-dir $(VENV)/mypy

# The site, in site/; nothing is fetched. The variable leaves out an advertisement of the theme.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

# The pictures of the documents, from what the demo trained and the benchmark measured.
figures: demo
	$(CACHE) $(BIN)/python tools/analysis/figures.py

.venv/ready: constraints.txt
.venv-lowest/ready: constraints-lowest.txt
.venv-lowest/ready: VENV = .venv-lowest
.venv-lowest/ready: INTERPRETER = $(PYTHON_LOWEST)

.venv/ready .venv-lowest/ready: setup.py
	$(INTERPRETER) -c "import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 12), \
	    'mmpatch is tested on Python 3.10 to 3.12, not ' + sys.version + '; set PYTHON=...'"
	$(INTERPRETER) -m venv --clear $(VENV)
	$(PIP_INSTALL) "setuptools>=77.0.1,<81"
	$(PIP_INSTALL) --no-build-isolation -e ".[det,seg,onnx,openvino,docs,dev]"
	# mmdet and mmseg depend on opencv-python, whose windows need the libraries of a desktop.
	$(BIN)/pip uninstall --quiet --yes opencv-python
	$(PIP_INSTALL) opencv-python-headless
	# mmengine imports yapf, which caches its grammar on first import and not atomically: two test
	# processes that start together could read half of it.
	$(CACHE) $(BIN)/python -c "import yapf"
	touch $@

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info site work_dirs data/toy
