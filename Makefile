# All targets use one environment, .venv; the first target that is run makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 30
SEED ?= 0
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest

.PHONY: help demo test test-oldest test-slow test-pairs fuzz soak lint types docs package bench teacher evidence-teachers evidence-gpu report tables clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-17s %s\n", $$1, $$2}'

demo: $(STAMP)  ## Distil the digits default: three seeds, ScaleKD and two baselines, a table and a picture.
	$(BIN)/scalekd distill

test: $(STAMP)  ## Run all tests but the slow ones.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-oldest: $(OLDEST)/.installed  ## Run all tests but the slow ones with the oldest allowed dependencies.
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2

test-slow: $(STAMP)  ## Run the slow tests, except the steps of the paper's pairs.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --ignore tests/test_pairs.py

test-pairs: $(STAMP)  ## Run a real full-size step of each of the paper's pairs (slow; needs 10 GB of memory).
	$(BIN)/python -m pytest -m slow tests/test_pairs.py

fuzz: $(STAMP)  ## Damage files and read them, for ten minutes (FUZZ_MINUTES=10): nothing but one-line refusals may come of it.
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py --minutes $(or $(FUZZ_MINUTES),10)

soak: $(STAMP)  ## Disturb trainings at random for half an hour (MINUTES=30 SEED=0), and compare what they end with.
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/soak/soak.py --minutes $(MINUTES) --seed $(SEED)

lint: $(STAMP)  ## Check style and format with ruff.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## Check the types of the package with mypy.
	$(BIN)/mypy

docs: $(STAMP)  ## Build the site into docs/_build/html; its notebook runs, and every warning is an error.
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going --nitpicky --quiet docs docs/_build/html

package: $(STAMP)  ## Build wheel and sdist into dist/, and try the wheel in an environment of its own.
	rm -rf dist
	$(BIN)/uv build --quiet --python $(BIN)/python
	$(BIN)/python tests/package/try_wheel.py dist/*.whl

bench: $(STAMP)  ## Time a step of two pairs beside the released structure (batch 8, two threads) and print the results.
	$(BIN)/python benchmarks/step.py --pair swin_small-resnet50 --batch_size 8 --threads 2
	$(BIN)/python benchmarks/step.py --pair swin_large-resnet50 --batch_size 8 --threads 2 --accumulate 1

teacher: $(STAMP)  ## Train the digits teacher again (half an hour; resumes where it was stopped).
	$(BIN)/python experiments/digits_teacher.py

evidence-teachers: $(STAMP)  ## Train the Fashion-MNIST teachers of experiments/PROTOCOL.md (hours; resumes where it was stopped).
	$(BIN)/python experiments/teachers.py

evidence-gpu: $(STAMP)  ## On a GPU, in nine minutes at a time: the larger teachers, the main comparison under the large one, and teachers' sizes.
	timeout 4m $(BIN)/python experiments/teachers.py medium large || test $$? = 124
	test ! -d runs/teachers/large-finished/student || \
	  $(BIN)/python experiments/evidence/runner.py longer --device cuda --processes 6 --budget 3m
	test ! -d runs/teachers/large-finished/student || \
	  $(BIN)/python experiments/evidence/runner.py teacher_size --device cuda --processes 6 --budget 2m

report: $(STAMP)  ## Write RESULTS.md, experiments/report.html and the README's table from the records.
	$(BIN)/python experiments/report/report.py

tables: $(STAMP)  ## Try the paper's pairs and timm's families again, and write docs/pairs.md and docs/families.md.
	$(BIN)/python experiments/pairs.py
	$(BIN)/python experiments/families.py

clean:  ## Remove the environment, but not the runs.
	rm -rf $(VENV) $(OLDEST)

$(OLDEST)/.installed: pyproject.toml $(STAMP)
	test -x $(OLDEST)/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	touch $@

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: name one, for example make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@
