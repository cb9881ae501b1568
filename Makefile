# Everything that people and CI run. Each target does its own set-up: `make demo` and `make test` need only Python 3.11+.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV := .venv
PROTO_VENV := .venv-proto
FLOOR_VENV := .venv-floor
FEDERATED_VENV := .venv-federated
SUCCESSOR_VENV := .venv-successor
BIN := $(VENV)/bin
ARGS ?=

# The stubs are generated with the oldest supported protobuf, because code from a newer one does not load on an older
# one. The tools need an environment of their own, because they pin versions that the project does not.
PROTO_TOOLS := grpcio-tools==1.72.1 mypy-protobuf==3.6.0 'setuptools<81'
# The oldest gRPC and a protobuf 6 that the client promises to run on.
FLOOR := grpcio==1.72.1 grpcio-health-checking==1.72.1 grpcio-reflection==1.72.1 protobuf==6.33.0 'numpy<2.3'
STUBS := clients/livefactor/v1
PROTOS := $(wildcard protos/livefactor/v1/*.proto)

.PHONY: help
help: ## Shows this list.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

## Set-up: one virtual environment, one stamp for each set of extras.

.PHONY: setup
setup: $(VENV)/.stamp-dev ## Makes the virtual environment with everything for development.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "livefactor needs Python 3.11 or newer: make PYTHON=/path/to/python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-server: pyproject.toml scripts/install | $(BIN)/python
	@scripts/install $(BIN)/python -e '.[server]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml scripts/install | $(BIN)/python
	@scripts/install $(BIN)/python -e '.[server,dev]'
	@touch $@ $(VENV)/.stamp-server

$(VENV)/.stamp-browser: pyproject.toml scripts/install | $(BIN)/python
	@scripts/install $(BIN)/python -e '.[browser]'
	@touch $@ $(VENV)/.stamp-server $(VENV)/.stamp-dev

$(VENV)/.stamp-adapt: pyproject.toml scripts/install | $(BIN)/python
	@scripts/install $(BIN)/python -e '.[dev,adapt]'
	@touch $@ $(VENV)/.stamp-server $(VENV)/.stamp-dev

$(VENV)/.stamp-trackers: pyproject.toml scripts/install | $(BIN)/python
	@scripts/install $(BIN)/python -e '.[trackers]'
	@touch $@ $(VENV)/.stamp-server $(VENV)/.stamp-dev

$(VENV)/.stamp-bench: pyproject.toml scripts/install | $(BIN)/python
	@scripts/install $(BIN)/python -e '.[server,bench]'
	@touch $@ $(VENV)/.stamp-server

$(PROTO_VENV)/.stamp: Makefile scripts/install
	@$(PYTHON) -m venv --clear $(PROTO_VENV)
	@scripts/install $(PROTO_VENV)/bin/python $(PROTO_TOOLS)
	@touch $@

$(FLOOR_VENV)/.stamp: Makefile pyproject.toml scripts/install
	@$(PYTHON) -m venv --clear $(FLOOR_VENV)
	@scripts/install $(FLOOR_VENV)/bin/python $(FLOOR) -e '.[server]' buf-bin hypothesis pandas psutil 'psycopg[binary]' pyarrow pytest pytest-rerunfailures pytest-timeout safetensors tantivy
	@touch $@

# Flower pins versions that the other tools do not, such as protobuf 6.
$(FEDERATED_VENV)/.stamp: Makefile pyproject.toml scripts/install
	@$(PYTHON) -m venv --clear $(FEDERATED_VENV)
	@scripts/install $(FEDERATED_VENV)/bin/python -e '.[server,federated]' 'flwr[simulation]' hypothesis psutil pytest pytest-rerunfailures pytest-timeout
	@touch $@

$(SUCCESSOR_VENV)/.stamp: Makefile scripts/install
	@$(PYTHON) -m venv --clear $(SUCCESSOR_VENV)
	@scripts/install $(SUCCESSOR_VENV)/bin/python numba-cuda-mlir 'numba>=0.68' 'cuda-toolkit==13.0.*'
	@touch $@

## Running it.

.PHONY: demo
demo: $(VENV)/.stamp-server ## Streams a real shop's year through a server, kills it and proves its state, in under two minutes.
	@$(BIN)/livefactor demo $(ARGS)

.PHONY: serve
serve: $(VENV)/.stamp-server ## Runs a server on its default port and data folder; ARGS='--help' lists its settings.
	@$(BIN)/livefactor serve $(ARGS)

.PHONY: bench
bench: $(VENV)/.stamp-bench ## Measures the speed; writes benchmarks/results/cpu.json, docs/benchmarks.md and the README's table.
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: quality
quality: $(VENV)/.stamp-bench ## Measures ranking and prediction beside tuned retrains; writes docs/quality.md and its pictures.
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality $(ARGS)

.PHONY: pictures
pictures: $(VENV)/.stamp-dev ## Draws the README's pictures from a run of the demo and benchmarks/results/quality.json.
	@$(BIN)/python -m benchmarks.pictures $(ARGS)

.PHONY: tune
tune: $(VENV)/.stamp-dev ## Runs the worked example of `livefactor tune`; writes its table and picture in docs/guides/tune.md.
	@$(BIN)/python -m benchmarks.tuned

.PHONY: wheel
wheel: $(VENV)/.stamp-dev ## Builds dist/*.whl with kernels that are compiled for every x86-64-v3 processor; takes minutes.
	@rm -rf build/wheel dist/*.whl && mkdir -p build/wheel dist
	@tar -c --exclude __pycache__ pyproject.toml README.md LICENSE clients kernels server | tar -x -C build/wheel
	@PYTHONPATH=build/wheel/clients:build/wheel/kernels:build/wheel/server $(BIN)/livefactor warmup --baseline $(ARGS)
	@cd build/wheel && $(abspath $(BIN))/hatchling build -t wheel -d $(abspath dist)

## Testing it.

# Clones of the project share the kernels that their tests compile, which takes minutes.
test test-floor test-federated: export NUMBA_CACHE_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/livefactor/kernels
# Tests start hundreds of processes. Without bytecode on disk, each one compiles all modules that it imports.
test test-long test-floor test-federated: export PYTHONDONTWRITEBYTECODE :=

.PHONY: test
# Many tests wait for a server or a disk, so two cores take three processes.
test: $(VENV)/.stamp-dev ## Runs the whole suite; WORKERS=N sets the number of processes.
	@$(BIN)/python -m pytest -n $(or $(WORKERS),$(if $(filter 1 2 3,$(shell nproc)),3,4)) --dist worksteal $(ARGS)

.PHONY: test-long
test-long: $(VENV)/.stamp-dev ## Runs the tests that take minutes each.
	@$(BIN)/python -m pytest -m long --timeout=3600 $(ARGS)

.PHONY: test-adapt
test-adapt: $(VENV)/.stamp-adapt ## Runs the tests that train an encoder; it installs PyTorch, which takes gigabytes.
	@$(BIN)/python -m pytest -n 0 tests/server/tuning/adapting $(ARGS)

.PHONY: battle
battle: $(VENV)/.stamp-dev ## Attacks, overloads and soaks a server; writes benchmarks/results/battle.json.
	@BATTLE_RESULTS=benchmarks/results/battle.json $(BIN)/python -m pytest tests/battle -m 'long or not long' -k 'not short' --timeout=7200 $(ARGS)

.PHONY: torture
torture: $(VENV)/.stamp-dev ## Kills, cuts and changes models for a quarter of an hour; writes benchmarks/results/torture.json. KILLS=500 CUTS=500 LEADER_KILLS=100
	@TORTURE_RESULTS=benchmarks/results/torture.json TORTURE_TAMPERED=500 TORTURE_FLIPS=2000 TORTURE_DISKS=5 TORTURE_KILLS=$(or $(KILLS),500) TORTURE_CUTS=$(or $(CUTS),500) TORTURE_CRASHES=1000 \
		TORTURE_LEADER_KILLS=$(or $(LEADER_KILLS),100) TORTURE_ROUNDS=20 $(BIN)/python -m pytest -n 0 -p no:rerunfailures -m 'torture and not long' --timeout=7200 $(ARGS)

.PHONY: test-browser
test-browser: $(VENV)/.stamp-browser ## Looks at console and report with headless Chromium; PICTURES=1 draws their pictures in the docs anew.
	@command -v chromium >/dev/null || { apt-get update -q && apt-get install -qy chromium; }
	@BROWSER_PICTURES=$(PICTURES) $(BIN)/python -m pytest -n 0 tests/server/console $(ARGS)

.PHONY: notebook
notebook: $(VENV)/.stamp-dev ## Runs the notebook examples/notebook/shop.ipynb and keeps what it shows.
	@$(BIN)/jupyter execute --inplace examples/notebook/shop.ipynb

.PHONY: privacy-attack
privacy-attack: $(VENV)/.stamp-dev ## Audits differential privacy with 1,000 canaries; writes benchmarks/results/privacy.json and docs/privacy.md.
	@$(BIN)/python -m benchmarks.privacy.attack $(ARGS)

.PHONY: test-federated
test-federated: $(FEDERATED_VENV)/.stamp ## Tests rounds with Flower: a hundred participants in memory, a SuperLink with SuperNodes, and Ray.
	@$(FEDERATED_VENV)/bin/python -m pytest tests/federated tests/clients/federated $(ARGS)

.PHONY: test-trackers
test-trackers: $(VENV)/.stamp-trackers ## Logs a fit to TensorBoard, to MLflow in a folder, and to W&B offline.
	@$(BIN)/python -m pytest -n 0 tests/end_to_end/test_trackers.py $(ARGS)

.PHONY: test-brokers
test-brokers: $(VENV)/.stamp-dev ## Ingests from real brokers: Debian's nats-server and redis-server, and librdkafka's mock of Kafka.
	@command -v nats-server redis-server >/dev/null || { apt-get update -q && apt-get install -qy nats-server redis-server; }
	@$(BIN)/python -m pytest -n 0 tests/clients/ingest tests/battle/test_ingest_kills.py -m 'not long' $(ARGS)

.PHONY: test-gpu
test-gpu: $(VENV)/.stamp-dev ## Runs the tests that need a GPU; `pip install livefactor[cuda13]` (or cuda12) first.
	@$(BIN)/python -m pytest -m gpu $(ARGS)

.PHONY: gpu-check
gpu-check: ## Runs all GPU tests on a GPU, then measures every figure; writes the results and docs/gpu.md.
	@PYTHONPATH=clients:server:kernels $(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu_check $(ARGS)

.PHONY: test-floor
test-floor: $(FLOOR_VENV)/.stamp ## Tests client, contract and examples on the oldest gRPC and on protobuf 6.
	@$(FLOOR_VENV)/bin/python -m pytest tests/clients tests/house/test_stubs.py tests/end_to_end/test_examples.py $(ARGS)

.PHONY: check
check: $(VENV)/.stamp-dev check-stubs ## Checks lint, types, imports between rooms, contract and stubs.
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint protos
	@$(BIN)/buf breaking protos --against protos/baseline.binpb
	@$(BIN)/python scripts/api_page.py --check

.PHONY: check-successor
check-successor: $(SUCCESSOR_VENV)/.stamp ## Shows which GPU kernels numba-cuda's successor compiles; never fails.
	@$(SUCCESSOR_VENV)/bin/python scripts/compile_with_successor.py

## The contract.

# $(1): a folder. Both plugins are found through PATH.
generate = mkdir -p $(1) && cd protos && PATH="$(abspath $(PROTO_VENV))/bin:$$PATH" python -m grpc_tools.protoc -I. \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS:protos/%=%)

.PHONY: proto
proto: $(PROTO_VENV)/.stamp ## Generates the stubs, docs/api.md and the example's copies from protos/.
	@$(call generate,$(abspath clients))
	@rm -rf examples/node/protos && mkdir -p examples/node/protos/livefactor/v1 && cp $(PROTOS) examples/node/protos/livefactor/v1
	@$(MAKE) --no-print-directory docs

.PHONY: check-stubs
check-stubs: $(PROTO_VENV)/.stamp ## Fails if the committed stubs are not what `make proto` writes.
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && ($(call generate,"$$scratch")) \
		&& diff -rq --exclude=__init__.py --exclude=__pycache__ $(STUBS) "$$scratch/livefactor/v1" \
		|| { echo 'the stubs differ from protos/: run `make proto` and commit what it writes' >&2; exit 1; }

.PHONY: proto-baseline
proto-baseline: $(VENV)/.stamp-dev ## Accepts an addition to the contract; BREAKING=1 accepts a breaking change too.
	@test -n "$(BREAKING)" || $(BIN)/buf breaking protos --against protos/baseline.binpb
	@$(BIN)/buf build protos --exclude-source-info -o protos/baseline.binpb

.PHONY: docs
docs: $(VENV)/.stamp-dev ## Writes docs/api.md from the comments of the contract.
	@$(BIN)/python scripts/api_page.py

.PHONY: docs-site
docs-site: $(VENV)/.stamp-dev ## Builds the site of the docs in build/site; a warning fails it.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo 'build/site/index.html'

.PHONY: clean
clean: ## Removes the environments and everything that was built.
	@rm -rf $(VENV) $(PROTO_VENV) $(FLOOR_VENV) $(FEDERATED_VENV) $(SUCCESSOR_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
