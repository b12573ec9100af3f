# Everything a person or CI types. `make help` lists it.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

setup: .venv/.ready  ## make .venv with everything in requirements.lock

demo: .venv/.ready  ## a real day, a real night, a better morning; it says first how long it takes here
	$(BIN)/nightschool demo

test: .venv/.ready  ## the whole suite; starts real Kafka and vLLM itself
	$(BIN)/python -m pytest

test-fast: .venv/.ready  ## what needs no broker, engine or minute
	$(BIN)/python -m pytest -m "not kafka and not vllm and not slow"

lint: .venv/.ready  ## ruff and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.ready  ## one benchmark: make bench NAME=night
	$(BIN)/python benchmarks/$(NAME).py

lock:  ## resolve requirements.lock anew
	$(BIN)/uv pip compile pyproject.toml --extra all-cpu --group dev --group bench --no-emit-index-url --no-header --quiet --upgrade -o requirements.lock

.PHONY: help setup demo test test-fast lint bench lock
