# A virtual environment of its own, with the pinned dependencies; PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all test-faults chaos lint bench bench-scale bench-recall bench-quality bench-effects clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,test,lint]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/llmrec demo

# Those that start a cluster one after another, the others on all cores.
CLUSTERED := tests/engine tests/local $(addprefix tests/benchmarks/,test_recall.py test_scale.py test_speed_of_items.py)
MAIN := tests/engine/test_main_job.py tests/engine/test_pipeline.py

# What needs no cluster, and the main job and the daily run on one.
test: $(STAMP)
	$(BIN)/pytest -n logical --dist worksteal $(CLUSTERED:%=--ignore=%)
	$(BIN)/pytest $(MAIN)

# Every other job on a cluster, too: most of an hour on two cores.
test-all: test
	$(BIN)/pytest $(CLUSTERED) $(MAIN:%=--ignore=%)

test-faults: $(STAMP)
	$(BIN)/pytest -m 'faults and not chaos'

chaos: $(STAMP)
	$(BIN)/pytest -m chaos -s

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.speed --items --training --curves

bench-scale: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.scale

bench-recall: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.recall

# QUALITY='--data DIR ...' adds options.
bench-quality: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.quality $(QUALITY)

bench-effects: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.images --threads 2
	$(BIN)/python -m benchmarks.cold_start
	$(BIN)/python -m benchmarks.queries
	$(BIN)/python -m benchmarks.replay --threads 2

clean:
	rm -rf $(VENV) build *.egg-info
