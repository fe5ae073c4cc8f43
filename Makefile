# make demo   its own environment, the demo recipe, the report
# make test   the default tests (two cores, some three minutes) with lint and types
# make check  every test, the slow ones too (under an hour); LEP_DATA names a folder of real text, LEP_MODELS one of real models,
#             LEP_VLLM a Python that has vLLM, LEP_AXE axe-core's axe.min.js (Chromium looks at the page with it)

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TORCH ?= torch==2.13.0
# Two threads: more slow these small models down, and the figures in the documentation are made with two.
export OMP_NUM_THREADS ?= 2
export HF_HUB_OFFLINE = 1

.PHONY: demo test check lint docs lock audit clean

demo: $(VENV)/ready
	$(BIN)/lep run recipes/demo.yaml --output runs/demo

# Tests run two at a time with one thread each: each process takes half of the files, and the one
# that ends first takes tests from the other. Bytecode is kept, which saves 8 seconds.
test check: export PYTHONDONTWRITEBYTECODE =
test check: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

# The pages under docs as a site, in build/site; broken links and headings are errors.
docs: $(VENV)/ready
	$(BIN)/python -m pip install --quiet 'mkdocs-material>=9.5' 'mkdocstrings[python]>=1'
	$(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/ready
	$(BIN)/ruff check src lab tests benchmarks docs
	$(BIN)/ruff format --check src lab tests benchmarks docs
	$(BIN)/mypy

# Everything but torch has its version and hashes in requirements.lock. Which torch there is (CPU, CUDA, ROCm)
# depends on the machine: TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" is the small one for Linux.
$(VENV)/ready: pyproject.toml requirements.lock $(VENV)/torch
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	touch $@

# Newer versions: delete requirements.lock first.
lock: $(VENV)/torch
	$(BIN)/python -m pip install --quiet uv
	echo "torch; python_version < '3'" >$(VENV)/no-torch
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --quiet --custom-compile-command "make lock" --override $(VENV)/no-torch --output-file requirements.lock

# Known holes in the packages of requirements.lock (needs the network).
audit: $(VENV)/torch
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --disable-pip --requirement requirements.lock

clean:
	rm -rf $(VENV) runs/demo
