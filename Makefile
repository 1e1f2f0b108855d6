# One short name per chore.
.PHONY: fmt lint type test test-all mutants bench

fmt:
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .

type:
	mypy

test:
	python -m pytest

test-all:
	python -m pytest -m "slow or not slow"

mutants:
	python -m tests.mutants

bench:
	python -m benchmarks.speed
