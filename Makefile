.DEFAULT_GOAL := help
.PHONY: help setup fmt check test slow doctest docs compatibility thirdparty mutation mutants

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
compatibility: ## Measure the tables of docs/compatibility.md anew
	python -m pytest -m "slow or not slow" tests/plugin/test_processes.py tests/plugin/test_precision.py \
	  --write-compatibility docs/compatibility.md
thirdparty: ## Teach modules of published packages, in an environment of their own
	python -m venv .thirdparty
	grep -v '^pandas=' constraints.txt > .thirdparty/constraints.txt  # pytorch-forecasting's is older
	.thirdparty/bin/pip install -c .thirdparty/constraints.txt -e . pytest \
	  -r tests/third_party/requirements.txt
	.thirdparty/bin/python -m pytest -m third_party tests/third_party \
	  --write-compatibility docs/compatibility.md
mutation: ## Mutate the core and count what the tests notice (pip install -e ".[mutation]")
	python tests/mutation.py --sample 1000 --page docs/results/mutation.md
mutants:  ## Break derivative matching in five ways; tests of ten files must notice each
	for name in term-x-0 term-x-2 scale-left-out same-directions teacher-is-student; do \
	  python -m pytest -n 2 -q --tb=no -p no:cacheprovider --mutant=$$name || failed=1; \
	done; test -z "$$failed"
docs:     ## The documentation, warnings as errors
	python -m sphinx -W -q -b html docs docs/_build/html
