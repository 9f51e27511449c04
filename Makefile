# Targets run in the environment that is active: python3 -m venv .venv && . .venv/bin/activate
.PHONY: install lint quick test docs

install:
	pip install -e '.[test]'

lint:
	ruff check .
	ruff format --check .
	mypy
	lint-imports

quick: lint  ## what answers in two minutes
	pytest --few 3 -m 'not ray and not browser and not slow'

test: lint
	pytest

docs:  ## build/site/index.html
	sphinx-build -W -c docs . build/site
