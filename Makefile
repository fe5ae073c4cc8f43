# make demo   its own environment, the demo recipe, the report
# make test   the default tests (two cores, some three minutes) with lint and types
# make check  every test, the slow ones too (under an hour); LEP_DATA names a folder of real text, LEP_MODELS one of real models,
#             LEP_VLLM a Python that has vLLM

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Two threads: more slow these small models down, and the figures in the documentation are made with two.
export OMP_NUM_THREADS ?= 2
export HF_HUB_OFFLINE = 1

.PHONY: demo test check lint docs clean

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
	$(BIN)/python -m pip install --quiet 'mkdocs-material>=9.5'
	$(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/ready
	$(BIN)/ruff check src lab tests benchmarks
	$(BIN)/ruff format --check src lab tests benchmarks
	$(BIN)/mypy

# The CPU build of torch comes first, held by the constraints: a plain `torch` brings gigabytes of CUDA.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs/demo
