# Everything a person or CI does with this project. The virtual environment is made when it is first needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The pages are built, checked and tested where there is a Node.js that can. Elsewhere all else works, and says so.
NODE := $(shell node -p 'const [major, minor] = process.versions.node.split(".").map(Number); \
	major > 22 || (major === 22 && minor >= 12) || (major === 20 && minor >= 19) ? "yes" : ""' 2> /dev/null)
WITHOUT_NODE := No Node.js 20.19 or newer is found
NOT_BUILT := the pages for browsers are not built, and the API is served all the same.
PAGES := graphql_api/web/index.html
PAGES_FROM := $(shell find web clients/react -mindepth 1 \( -name node_modules -o -name dist -o -name build \) -prune -o -print 2> /dev/null)
# Folders with a package.json, whose script `check` looks at what is in them.
NODE_PROJECTS := web tests/browser clients/react
INSTALLED := node_modules/.package-lock.json

.PHONY: run web test test-interpreted fuzz torture check check-web format lock schema migration bench bench-storage \
	bench-web screenshots clean help

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: $(READY) ## Serve on 127.0.0.1:8000; SPECTRAL_HOST, SPECTRAL_PORT and SPECTRAL_DATA_DIR are obeyed
	@$(if $(NODE),$(MAKE) --no-print-directory web || echo '$(NOT_BUILT)',echo '$(WITHOUT_NODE): $(NOT_BUILT)')
	@exec $(BIN)/spectral-notify serve

web: $(if $(NODE),$(PAGES)) ## Build the pages for browsers, if something has changed
	@$(if $(NODE),true,echo '$(WITHOUT_NODE), which builds the pages for browsers.' >&2; exit 1)

test: $(READY) $(if $(NODE),$(PAGES) tests/browser/$(INSTALLED)) ## Run the tests
	@$(if $(NODE),true,echo '$(WITHOUT_NODE): the tests of the pages are skipped.')
	$(BIN)/python -m pytest

test-interpreted: $(READY) ## Run the tests of the API with operations run by graphql-core
	TEST_EXECUTION=interpreted $(BIN)/python -m pytest tests/graphql_api

fuzz: $(READY) ## Ask both executors 20,000 operations, and send a server 100,000 inputs; FUZZ_OPERATIONS and FUZZ_INPUTS say otherwise
	FUZZ_OPERATIONS=$${FUZZ_OPERATIONS:-20000} $(BIN)/python -m pytest -s --timeout 3600 tests/graphql_api/test_executors.py
	FUZZ_INPUTS=$${FUZZ_INPUTS:-100000} $(BIN)/python -m pytest -s --timeout 3600 tests/hostile/test_fuzz.py

torture: $(READY) ## Break everything while clients work, and check: make torture SECONDS=600 SEED=7 FEED=nats
	$(BIN)/python -m tests.faults --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED)) --feed $(or $(FEED),postgres)

check: $(READY) $(if $(NODE),check-web) ## Format, lint, types, import directions, and whether generated files are current
	@$(if $(NODE),true,echo '$(WITHOUT_NODE): the checks of $(NODE_PROJECTS) are skipped.')
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@$(BIN)/spectral-notify schema | diff -u schema.graphql - || { echo 'schema.graphql is stale: make schema'; exit 1; }
	@$(BIN)/python docs/generate.py --check

check-web: $(NODE_PROJECTS:%=%/$(INSTALLED)) ## The same for what is written for Node.js, and its own tests
	@for project in $(NODE_PROJECTS); do \
		echo "$$project" && npm --prefix "$$project" run --silent check && \
		npm --prefix "$$project" run --silent --if-present test || exit 1; \
	done

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

bench-web: $(READY) $(PAGES) tests/browser/$(INSTALLED) ## Measure the dashboard in a browser
	$(BIN)/python -m tests.browser bench

screenshots: $(READY) $(PAGES) tests/browser/$(INSTALLED) ## Take the pictures of docs/screenshots
	$(BIN)/python -m tests.browser screenshots

bench/load: bench/load.c
	@command -v $(CC) > /dev/null || { echo 'The benchmark needs a C compiler for its load generator.'; exit 1; }
	$(CC) -O2 -Wall -Wextra -Werror -o $@ $<

lock: $(READY) ## Renew the lock files: newest versions that pyproject.toml allows
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --extra embedded --extra otel -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --extra embedded --extra otel --group dev -c requirements.lock \
		-o requirements-dev.lock pyproject.toml

clean: ## Remove what was made
	rm -rf $(VENV) bench/load .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf graphql_api/web graphql_api/web.new web/dist $(NODE_PROJECTS:%=%/node_modules)
	rm -rf $(foreach folder,clients/react examples,$(addprefix $(folder)/,build dist generated node_modules))

$(READY): requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

$(PAGES): web/$(INSTALLED) $(PAGES_FROM)
	npm --prefix web run --silent build

# npm writes this file when it has installed everything.
%/$(INSTALLED): %/package.json %/package-lock.json
	npm --prefix $* ci --no-audit --no-fund --loglevel=error
