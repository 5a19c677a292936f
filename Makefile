# The daily commands. `make` alone lists them.
#
#   PYTHON=python3.12   the interpreter that .venv is made from (3.11 or newer)
#   PORT=7861           the port of `make demo`
#   SMOKE=1             `make demo` starts, checks that the page's figure holds data, and stops

PYTHON ?= python3
VENV := .venv/bin/python
BUILD_OPS := $(VENV) -m codetr_lab.build_ops $(if $(shell command -v nvidia-smi),,--no-cuda)
QUICK := not slow and not browser and not notebook and not fiftyone
export PYTHON
export MAKE_GOAL := $(firstword $(MAKECMDGOALS))

.DEFAULT_GOAL := help
.PHONY: help demo test check lint notebooks clean

help:
	@echo "make demo        the workbench in your browser (PORT=7861 for another port)"
	@echo "make test        the whole test suite, notebooks and browser included (up to 25 minutes)"
	@echo "make check       the quick tests, style and types (3 minutes)"
	@echo "make lint        style alone"
	@echo "make notebooks   run the notebooks' sources again and write the .ipynb beside them"
	@echo "make clean       remove the environment and what the commands left behind"

# Stamps: an environment is made once, and again when what it is made from changes.
.venv/.demo: pyproject.toml constraints.txt tools/environment.sh
	@sh tools/environment.sh app
	@$(BUILD_OPS)
	@touch $@

.venv/.all: pyproject.toml constraints.txt tools/environment.sh
	@sh tools/environment.sh all
	@touch .venv/.demo $@

demo: .venv/.demo
	@GRADIO_ANALYTICS_ENABLED=False $(VENV) -m codetr_lab.cli demo $(if $(PORT),--port $(PORT)) $(if $(SMOKE),--smoke)

test: .venv/.all
	@$(BUILD_OPS)
	@$(VENV) -m codetr_lab.doctor --tests
	@OMP_NUM_THREADS=1 PLOTLY_RENDERER=plotly_mimetype $(VENV) -m pytest --numprocesses 2 --dist loadfile \
		--nbmake --nbmake-timeout 300 --cov --cov-report term --durations 10 --quiet

check: .venv/.all lint
	@$(BUILD_OPS)
	@$(VENV) -m mypy
	@OMP_NUM_THREADS=1 $(VENV) -m pytest --numprocesses 2 --dist loadfile -m "$(QUICK)" --quiet

lint: .venv/.all
	@$(VENV) -m ruff check
	@$(VENV) -m ruff format --check

notebooks: .venv/.all
	@OMP_NUM_THREADS=1 $(VENV) tools/notebooks.py

clean:
	@rm -rf .venv .uv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* \
		htmlcov test-artifacts
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
