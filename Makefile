# Each environment is made once, of files whose hashes are in constraints.lock (.venv) or
# constraints-lowest.lock (.venv-lowest). Only pip's own cache is written outside the clone.
PYTHON ?= python3
PYTHON_LOWEST ?= python3.10
SEED ?= 0
VENV = .venv
BIN = $(VENV)/bin
export MPLCONFIGDIR = $(CURDIR)/$(VENV)/matplotlib
CACHE = XDG_CACHE_HOME=$(CURDIR)/$(VENV)/cache
INSTALL = $(@D)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation
PYTEST = $(CACHE) PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m pytest -q --basetemp $(VENV)/pytest
# Two processes of one thread each are faster on two cores than threads that wait for each other.
TEST = OMP_NUM_THREADS=1 $(PYTEST) -n 2

.PHONY: demo test test-lowest test-matrix reliability gpu lint lock licenses docs figures clean

demo: .venv/ready
	$(CACHE) $(BIN)/python tools/demo.py --seed $(SEED)

test: .venv/ready lint
	$(TEST)

# The whole suite on the lowest versions that setup.py allows.
test-lowest: VENV = .venv-lowest
test-lowest: .venv-lowest/ready
	$(TEST)

# The suite, or the tests in TESTS, in all of these environments; a table in docs/compatibility.md.
MATRIX ?= lowest 3.10 3.11 3.12 3.13 newest
TESTS ?= tests
test-matrix: .venv/ready
	$(BIN)/python tests/matrix.py $(MATRIX) --tests $(TESTS)

# Breaks things on purpose, in under 20 minutes: a table, and status 1 if a promise is broken.
reliability: .venv/ready
	$(CACHE) OMP_NUM_THREADS=1 $(BIN)/python tools/check_reliability.py

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

# The hashes of all files of the pinned versions, and whether the pins fit setup.py; needs uv.
lock:
	uv pip compile --quiet --all-extras -c constraints.txt setup.py > /dev/null
	uv pip compile --quiet --all-extras -c constraints-lowest.txt --python-version 3.10 setup.py \
	    > /dev/null
	for name in constraints constraints-lowest; do \
	    uv pip compile --quiet --no-deps --generate-hashes --no-annotate --no-header \
	        --no-emit-index-url --no-emit-package opencv-python --python-version 3.10 \
	        --output-file $$name.lock $$name.txt || exit 1; \
	done

# Licences of all packages of .venv; needs uv.
licenses: .venv/ready
	sed '/^<!--/q' docs/licenses.md > .venv/licenses.md
	echo >> .venv/licenses.md
	uvx --quiet pip-licenses --python=$(BIN)/python --format=markdown --order=license \
	    >> .venv/licenses.md
	mv .venv/licenses.md docs/licenses.md

PYTHONS = .venv-3.10/ready .venv-3.11/ready .venv-3.12/ready .venv-3.13/ready
INTERPRETER = $(PYTHON)
.venv/ready .venv-compiled/ready .venv-onedl/ready $(PYTHONS): constraints.lock
.venv-lowest/ready: constraints-lowest.lock
.venv-lowest/ready: INTERPRETER = $(PYTHON_LOWEST)
$(PYTHONS): INTERPRETER = python$(patsubst .venv-%,%,$(@D))
CHECK = import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 13), \
    'mmpatch is tested on Python 3.10 to 3.13, not ' + sys.version + '; set PYTHON=...'

# mmdet and mmseg depend on opencv-python, whose windows need the libraries of a desktop. The locks
# have opencv-python-headless instead, and every other package that is needed.
.venv/ready .venv-lowest/ready .venv-compiled/ready .venv-onedl/ready $(PYTHONS): setup.py
	$(INTERPRETER) -c "$(CHECK)"
	$(INTERPRETER) -m venv --clear $(@D)
	# What packages are built with comes first.
	sed -n '/^setuptools==/,/[^\\]$$/p' $(filter %.lock,$^) > $(@D)/setuptools.lock
	$(INSTALL) --require-hashes -r $(@D)/setuptools.lock
	$(INSTALL) --require-hashes --no-deps -r $(filter %.lock,$^)
	$(INSTALL) --no-deps -e .
	# mmengine imports yapf, which caches its grammar on first import and not atomically: two test
	# processes that start together could read half of it.
	XDG_CACHE_HOME=$(CURDIR)/$(@D)/cache $(@D)/bin/python -c "import yapf"
	touch $@

# The newest versions that setup.py allows. tests/matrix.py changes .venv-compiled and .venv-onedl,
# which are made of the pinned ones: mmcv 2.1 asks for C++17, the headers of torch 2.14 for C++20.
.venv-newest/ready: setup.py
	$(PYTHON) -m venv --clear $(@D)
	$(INSTALL) --upgrade "setuptools<81"
	$(INSTALL) -e ".[det,seg,onnx,openvino,docs,dev]"
	$(@D)/bin/pip uninstall --quiet --yes opencv-python opencv-python-headless
	$(INSTALL) opencv-python-headless
	touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info site work_dirs data/toy
