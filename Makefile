# Everything a person or CI does with this project. The virtual environment is made when it is first needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test test-interpreted fuzz torture check format lock schema migration bench bench-storage clean help

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: $(READY) ## Serve on 127.0.0.1:8000; SPECTRAL_HOST, SPECTRAL_PORT and SPECTRAL_DATA_DIR are obeyed
	@exec $(BIN)/spectral-notify serve

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest

test-interpreted: $(READY) ## Run the tests of the API with operations run by graphql-core
	TEST_EXECUTION=interpreted $(BIN)/python -m pytest tests/graphql_api

fuzz: $(READY) ## Ask both executors 20,000 operations, and send a server 100,000 inputs; FUZZ_OPERATIONS and FUZZ_INPUTS say otherwise
	FUZZ_OPERATIONS=$${FUZZ_OPERATIONS:-20000} $(BIN)/python -m pytest -s --timeout 3600 tests/graphql_api/test_executors.py
	FUZZ_INPUTS=$${FUZZ_INPUTS:-100000} $(BIN)/python -m pytest -s --timeout 3600 tests/hostile/test_fuzz.py

torture: $(READY) ## Break everything while clients work, and check: make torture SECONDS=600 SEED=7 FEED=nats
	$(BIN)/python -m tests.faults --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED)) --feed $(or $(FEED),postgres)

check: $(READY) ## Format, lint, types, import directions, and whether the generated files are current
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@$(BIN)/spectral-notify schema | diff -u schema.graphql - || { echo 'schema.graphql is stale: make schema'; exit 1; }
	@$(BIN)/python docs/generate.py --check

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(READY) ## Write schema.graphql, and what the docs take from the code
	$(BIN)/spectral-notify schema > schema.graphql
	$(BIN)/python docs/generate.py

migration: $(READY) ## Write a migration from the tables: make migration m="what it does"
	$(BIN)/python -m storage.migrations "$(m)"
	$(BIN)/ruff format -q storage/migrations

bench: $(READY) bench/load ## Measure the service beside what its parts cost: make bench args="--quick"
	$(BIN)/python -m bench $(args)

bench-storage: $(READY) ## Measure the storage alone; a benchmark is not a test
	$(BIN)/python -m bench.storage $(args)

bench/load: bench/load.c
	@command -v $(CC) > /dev/null || { echo 'The benchmark needs a C compiler for its load generator.'; exit 1; }
	$(CC) -O2 -Wall -Wextra -Werror -o $@ $<

lock: $(READY) ## Renew the lock files: newest versions that pyproject.toml allows
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --extra embedded --extra otel -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --extra embedded --extra otel --extra worker --group dev -c requirements.lock \
		-o requirements-dev.lock pyproject.toml

clean: ## Remove what was made
	rm -rf $(VENV) bench/load .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf $(foreach folder,clients/react examples,$(addprefix $(folder)/,build dist generated node_modules))

$(READY): requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
