# make serve [MODEL=gpt2-mini] [PORT=8000]   build artefacts from MODEL if absent and serve them
# make test                                  lint, types and every test that needs no root; what is left out, and why
# make test-images                           builds the images and runs them, where a Docker daemon answers
# make bench [BENCH=--quick]                 speed on two cores, beside that of other engines
# make sizing [IMAGE=ttgpt-service]          how much memory a pod needs, as a process or in containers
# make scaling                               what autoscalers make of a peak, simulated with measured times
# make bench-cache                           what the cache of contractions saves
# make bench-prompts                         what prefix caching and batches bring
# make soak                                  every fault, longer than in the tests, and ten minutes at full load
# make clients                               what other people's clients make of the service, in their latest versions
# make dashboards                            pictures of the dashboards, after five minutes of load
# make lock, sbom, audit, digests, wheel     what is shipped and of what: see k8s/README.md
# make pages                                 all tables and plots of all pages, from the committed results
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the CPU wheel of torch where PyPI's brings CUDA.
PYTHON ?= python3
MODEL ?= gpt2-mini
HOST ?= 127.0.0.1
PORT ?= 8000
BENCH ?=
IMAGE ?=
TORCH_INDEX ?=
EXTRAS ?= dev

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PREFIX := models/$(notdir $(patsubst %/,%,$(MODEL)))
# The first one is the default model of the service.
VARIANTS := int8 dense balanced small tensorgpt-r2 svd-r64
BUILT := $(VARIANTS:%=$(PREFIX)-%/manifest.json)

.PHONY: serve models test test-images check bench bench-cache bench-prompts sizing scaling soak clients pages monitoring \
  dashboards lock sbom audit digests wheel clean
.DELETE_ON_ERROR:

# While other models are built, the first one is served already.
serve: $(firstword $(BUILT))
	@echo
	@echo "Serving $(VARIANTS:%=$(notdir $(PREFIX))-%) on http://$(HOST):$(PORT) - try:"
	@echo
	@echo "  curl -s http://$(HOST):$(PORT)/generate -H 'content-type: application/json' -d '{\"inputs\":\"The old man looked at the sea\",\"parameters\":{\"do_sample\":true,\"temperature\":0.7,\"top_p\":0.9,\"seed\":2,\"max_new_tokens\":45}}'"
	@echo
	@$(MAKE) --question models || { $(BIN)/ttgpt serve $(PREFIX)-$(firstword $(VARIANTS)) --host $(HOST) --port $(PORT) & first=$$!; \
	  trap 'kill $$first' EXIT INT TERM; \
	  echo "Building the others, which takes about a minute and a half; until then $(firstword $(VARIANTS)) answers alone."; \
	  $(MAKE) --jobs=2 --no-print-directory models && kill $$first && { wait $$first; trap - EXIT INT TERM; }; }
	@exec $(BIN)/ttgpt serve $(VARIANTS:%=$(PREFIX)-%) --host $(HOST) --port $(PORT)

models: $(BUILT)

# They need the same measurements, which are kept for the next one.
$(PREFIX)-small/manifest.json: | $(PREFIX)-balanced/manifest.json

$(PREFIX)-int8/manifest.json: OPTIONS = --method quantize
$(PREFIX)-dense/manifest.json: OPTIONS = --method dense
$(PREFIX)-balanced/manifest.json: OPTIONS = --preset balanced
# Not healed, which takes minutes.
$(PREFIX)-small/manifest.json: OPTIONS = --preset small --heal-tokens 0
$(PREFIX)-tensorgpt-r2/manifest.json: OPTIONS = --method tensorgpt --rank 2
$(PREFIX)-svd-r64/manifest.json: OPTIONS = --method svd --rank 64

$(BUILT): | .venv/installed
	$(BIN)/ttgpt compress $(MODEL) $(OPTIONS) --out $(@D) --force

test: check
	$(BIN)/python -m pytest

test-images: .venv/installed-$(EXTRAS)
	$(BIN)/python -m pytest -m images --capture=tee-sys tests/deploy/images

check: .venv/installed-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed-bench
	$(BIN)/python -m tests.benchmarks $(BENCH)

sizing: .venv/installed-dev
	$(BIN)/python -m tests.benchmarks.sizing $(if $(IMAGE),--image $(IMAGE))

scaling: .venv/installed-dev
	$(BIN)/python -m tests.benchmarks.scaling

bench-cache: .venv/installed-dev
	$(BIN)/python -m tests.benchmarks.cache

bench-prompts: .venv/installed-dev $(PREFIX)-int8/manifest.json
	$(BIN)/python -m tests.benchmarks.prompts $(PREFIX)-int8

soak: .venv/installed-dev $(PREFIX)-int8/manifest.json $(PREFIX)-tensorgpt-r2/manifest.json
	FUZZ_CASES=10000 $(BIN)/python -m pytest --quiet tests/service/http/test_openapi.py
	$(BIN)/python -m tests.e2e $(PREFIX)-int8 $(PREFIX)-tensorgpt-r2

clients: .venv/installed-dev $(PREFIX)-int8/manifest.json
	$(BIN)/python -m tests.e2e.clients $(PREFIX)-int8

pages: .venv/installed-dev
	$(BIN)/python -m tests.pages

# What is generated for Grafana and the Prometheus operator.
monitoring: .venv/installed-dev
	$(BIN)/python docker/grafana/dashboards.py docker/grafana/dashboards
	$(BIN)/python docker/prometheus/operator_rules.py k8s/components/monitoring/prometheus-rule.yaml

# The last one proposes tokens to the others.
SHOWN := dense svd-r64 tensorgpt-r2 int8
dashboards: .venv/installed-dev $(SHOWN:%=$(PREFIX)-%/manifest.json)
	$(BIN)/python -m tests.deploy.boards $(SHOWN:%=$(PREFIX)-%)

# The newest versions of what the service's image installs.
lock: .venv/installed-supply
	$(BIN)/uv pip compile pyproject.toml --extra service --universal --python-version 3.11 --upgrade --quiet \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file docker/service.lock

sbom: .venv/installed-supply
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements docker/service.lock --of JSON --output-file build/sbom.json

# Strict, because what the advisories' server does not answer for would pass as sound.
audit: .venv/installed-supply
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement docker/service.lock

digests:
	$(PYTHON) docker/digests.py docker/service.Dockerfile docker/compressor.Dockerfile docker-compose.yml k8s/base/kustomization.yaml

# For this machine, and run without the sources, with nothing but the lock.
WHEEL := build/wheel/venv/bin
wheel: .venv/installed-supply $(PREFIX)-int8/manifest.json
	rm -rf build/wheel build/lib build/bdist.*
	$(BIN)/python -m build --wheel --outdir build/wheel
	$(BIN)/auditwheel show build/wheel/*.whl
	$(BIN)/abi3audit --strict --summary build/wheel/*.whl
	$(PYTHON) -m venv $(dir $(WHEEL))
	$(WHEEL)/python -m pip install --quiet --no-deps --require-hashes --requirement docker/service.lock
	$(WHEEL)/python -m pip install --quiet --no-deps build/wheel/*.whl
	cd $(dir $(WHEEL)) && bin/ttgpt --version && bin/python -c 'from compressor.runtime import reference; reference.dense()'
	cd $(dir $(WHEEL)) && bin/ttgpt generate $(abspath $(PREFIX)-int8) --prompt 'The old man' --max-new-tokens 8

.venv/bin/python:
	@command -v gcc >/dev/null || { echo 'the runtime is built from C: install a compiler, such as: apt-get install gcc libc6-dev' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[compressor,service]'
	@touch $@

.venv/installed-$(EXTRAS): pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@ .venv/installed

.venv/installed-supply: pyproject.toml | .venv/installed
	$(PIP) --editable '.[supply]'
	@touch $@

# Without a compiler there is no llama.cpp; the benchmark says so and compares with the others. With the tiles of AMX, gcc 12
# compiles it into something that ends at an illegal instruction.
NO_TILES := $(if $(shell grep -m1 -s amx_int8 /proc/cpuinfo),-mno-amx-int8)
.venv/installed-bench: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[bench]'
	@mkdir -p build/bench
	CFLAGS=$(NO_TILES) CXXFLAGS=$(NO_TILES) CMAKE_ARGS=-DLLAVA_BUILD=OFF $(PIP) --editable '.[bench-llama]' >build/bench/llama.log 2>&1 || tail -n 1 build/bench/llama.log
	@touch $@ .venv/installed

clean:
	rm -rf .venv models build
