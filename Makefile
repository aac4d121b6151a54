# make serve [MODEL=gpt2-mini] [PORT=8000]   build artefacts from MODEL if absent and serve them
# make test                                  lint, types and every test that needs no root
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the CPU wheel of torch where PyPI's brings CUDA.
PYTHON ?= python3
MODEL ?= gpt2-mini
HOST ?= 127.0.0.1
PORT ?= 8000
TORCH_INDEX ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PREFIX := models/$(notdir $(patsubst %/,%,$(MODEL)))
# The first one is the default model of the service.
VARIANTS := int8 dense tensorgpt-r2 tensorgpt-r3 svd-r64
BUILT := $(VARIANTS:%=$(PREFIX)-%/manifest.json)

.PHONY: serve models test check clean
.DELETE_ON_ERROR:

serve: models
	@echo
	@echo "Serving $(VARIANTS:%=$(notdir $(PREFIX))-%) on http://$(HOST):$(PORT) - try:"
	@echo
	@echo "  curl -s http://$(HOST):$(PORT)/generate -H 'content-type: application/json' -d '{\"inputs\":\"The old man looked at the sea\",\"parameters\":{\"max_new_tokens\":40}}'"
	@echo
	@exec $(BIN)/ttgpt serve $(VARIANTS:%=$(PREFIX)-%) --host $(HOST) --port $(PORT)

models: $(BUILT)

$(PREFIX)-int8/manifest.json: OPTIONS = --method quantize
$(PREFIX)-dense/manifest.json: OPTIONS = --method dense
$(PREFIX)-tensorgpt-r2/manifest.json: OPTIONS = --method tensorgpt --rank 2
$(PREFIX)-tensorgpt-r3/manifest.json: OPTIONS = --method tensorgpt --rank 3
$(PREFIX)-svd-r64/manifest.json: OPTIONS = --method svd --rank 64

$(BUILT): | .venv/installed
	$(BIN)/ttgpt compress $(MODEL) $(OPTIONS) --out $(@D) --force

test: check
	$(BIN)/python -m pytest

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[compressor,service]'
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/installed

clean:
	rm -rf .venv models
