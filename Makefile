.DEFAULT_GOAL := help
.PHONY: help setup fmt check test slow doctest docs

help:     ## Show the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: +##/\t/'
setup:    ## Install into the active environment
	pip install -c constraints.txt -e ".[dev]"
fmt:      ## Format and fix what can be fixed
	ruff format . && ruff check --fix .
check:    ## Lint, types, direction of imports
	ruff format --check . && ruff check . && mypy && lint-imports
test:     ## The default test suite
	python -m pytest -n 2
slow:     ## The tests that take minutes
	python -m pytest -m "slow or atari_long"
doctest:  ## The examples in docstrings
	python -m pytest --doctest-modules lightning_sobolev -q
docs:     ## The documentation, warnings as errors
	python -m sphinx -W -q -b html docs docs/_build/html
