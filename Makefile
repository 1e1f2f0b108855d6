# One short name per chore.
.PHONY: fmt lint type test test-all bench

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

bench:
	python -m benchmarks.speed
