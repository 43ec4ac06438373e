# `make demo` and `make test` do all set-up by themselves.
# PYTHON=path: the interpreter for a new .venv.  GPU=0|1: without or with CUDA, whatever nvidia-smi says.
# TF=2.15|2.21: the pair of TensorFlow and Keras (docs/VERSIONS.md), instead of the one that goes with Python's version.

python := .venv/bin/python
JOBS ?= 2

.PHONY: venv demo smoke test test-slow lint

venv:
	@sh .ci/venv.sh

demo: venv
	@$(python) -m trainer.demo $(if $(VOC),--voc_dir='$(VOC)')

smoke: venv
	@$(python) -m trainer.demo --smoke

test: venv
	@$(python) -m pytest -n $(JOBS) --dist=worksteal

test-slow: venv
	@$(python) -m pytest -m slow

lint: venv
	@$(python) -m ruff check . && $(python) -m ruff format --check . && $(python) -m mypy
