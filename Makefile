# make demo   set up and watch a policy learn            make test   set up and run every test
.PHONY: help demo test check chaos fuzz format setup lock images release clean
.DEFAULT_GOAL := help

BIN := .venv/bin
FAST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q -m "not vllm and not system"

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: ## set up and train the demo's model: Redis, control plane, rollout server (vLLM) and learner
	@deploy/setup.sh cpu
	@$(BIN)/trustbatch up --config deploy/configs/demo.yaml $(ARGS)

test: ## set up and run everything: format, lint, types, all tests (real Redis, real vLLM)
	@deploy/setup.sh dev
	@deploy/redis/fetch.sh
	@deploy/prometheus/fetch.sh
	@deploy/chromium/fetch.sh
	@deploy/compose/fetch.sh
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(FAST) $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -q -m "vllm or system" $(ARGS)

check: ## the same without vLLM and whole processes: under a minute once the type checker has its cache
	@deploy/setup.sh dev
	@deploy/redis/fetch.sh
	@deploy/prometheus/fetch.sh
	@deploy/compose/fetch.sh
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(FAST) $(ARGS)

chaos: ## inject faults at full size, about an hour (ARGS="--scenarios 1,4 --short"); report in runs/chaos
	@deploy/setup.sh dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos $(ARGS)

fuzz: ## a million hostile inputs for each decoder, guided by coverage: about ten minutes
	@deploy/setup.sh dev
	for target in codec manifest control recording patch; do $(BIN)/python -m tests.fuzz $$target --runs 1000000 || exit 1; done

format: ## rewrite the code in the project's format
	@deploy/setup.sh dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: ## only set up .venv
	@deploy/setup.sh dev

lock: ## write the lock files anew (needs uv; UV_FIND_LINKS may name a folder with a CPU build of torch)
	cd deploy/requirements && for name in cpu dev; do \
	  uv pip compile --quiet --python-version 3.11 --override overrides.txt --no-annotate --no-header \
	    cpu.in $$([ $$name = dev ] && echo dev.in) --output-file $$name.txt; done
	deploy/docker/requirements/lock.sh

images: ## build the five container images (needs Docker)
	@deploy/docker/build.sh $(ARGS)

release: ## make the wheel and a bill of materials, in dist/
	@deploy/setup.sh dev
	@deploy/release.sh

clean: ## remove the environment, caches and the demo's model; runs are kept
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
