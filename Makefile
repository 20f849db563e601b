# Everything a person or CI runs. `make help` lists it.

# Build results and the model stay outside the checkout, so that a fresh clone finds them again.
KELVIN_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kelvin
export CARGO_TARGET_DIR ?= $(KELVIN_CACHE)/target
BIN := $(CARGO_TARGET_DIR)/release

DEFAULT_MODEL := $(KELVIN_CACHE)/models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL ?= $(DEFAULT_MODEL)
# The default file calls itself after its training run; others are served under their own names.
MODEL_NAME ?= $(if $(filter $(DEFAULT_MODEL),$(MODEL)),smollm2-135m-instruct)
NEXTEST_PROFILE ?= default
# More flags for `kelvin up`, e.g. make up UP='--decode 2 --dram 4GiB'
UP ?=

# Environments of the Python package's tests; the second has vLLM, transformers, SGLang's base classes and mypy, the
# third LMCache, which wants other versions.
PYTHON_ENV := $(KELVIN_CACHE)/python/env
ENGINES_ENV := $(KELVIN_CACHE)/engines/vllm
LMCACHE_ENV := $(KELVIN_CACHE)/engines/lmcache
ENGINES_MODEL := $(KELVIN_CACHE)/engines/smollm2
CONNECTORS := workers/connectors
# What the tests in a browser need.
UI_PACKAGES := $(KELVIN_CACHE)/ui

CARGO := cargo
# One profile for everything: llama.cpp is compiled once.
FLAGS := --release --locked

.PHONY: help up build test check fmt clippy unit doc-test test-python test-deploy test-engines test-ui bench-smoke tools test-tools model

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  MODEL=path.gguf serves another model (now: $(MODEL)); UP='--decode 2' adds flags to kelvin up"

up: tools model build ## serve a model on http://127.0.0.1:8080 until Ctrl-C
	@exec "$(BIN)/kelvin" up --model "$(MODEL)" $(if $(MODEL_NAME),--model-name "$(MODEL_NAME)") $(UP)

build: tools ## the binaries kelvin and kelvin-bench, release
	$(CARGO) build $(FLAGS) --workspace --bins

test: tools model check unit doc-test test-python test-deploy ## formatting, lints and every test but those of engines and in a browser

check: fmt clippy ## formatting and lints alone

fmt:
	$(CARGO) fmt --all -- --check

clippy: tools
	$(CARGO) clippy $(FLAGS) --workspace --all-targets -- -D warnings

unit: export KELVIN_TEST_MODEL = $(MODEL)
unit: tools test-tools model
	@cli/setup.sh prometheus || echo '*** THE METRICS ARE NOT CHECKED BY PROMTOOL: prometheus cannot be installed (above) ***' >&2
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -x; \
	  $(CARGO) nextest run $(FLAGS) --workspace --profile $(NEXTEST_PROFILE); \
	else set -x; \
	  $(CARGO) test $(FLAGS) --workspace --lib --bins --tests; \
	fi

doc-test: tools
	$(CARGO) test $(FLAGS) --workspace --doc

# Builds the wheel as a user would and installs it in an environment: $(call install-wheel,ENV)
define install-wheel
rm -rf "$(KELVIN_CACHE)/wheels"
"$(1)/bin/maturin" build --quiet --release --interpreter "$(1)/bin/python" --manifest-path $(CONNECTORS)/Cargo.toml --out "$(KELVIN_CACHE)/wheels"
$(call install-built-wheel,$(1))
endef

define install-built-wheel
"$$(dirname "$(1)")/uv/bin/uv" pip install --quiet --no-deps --reinstall --python "$(1)/bin/python" "$(KELVIN_CACHE)"/wheels/kelvin-*.whl
endef

test-python: build model ## the Python package kelvin, built and tested without engines; the endpoint by OpenAI's client; traces by a real collector
	@if ! cli/setup.sh python "$(PYTHON_ENV)"; then \
	  echo '*** THE TESTS OF THE PYTHON PACKAGE ARE SKIPPED: its environment cannot be made (above) ***' >&2; \
	else \
	  $(MAKE) --no-print-directory python-tests; \
	fi

.PHONY: python-tests
python-tests:
	cd proto && "$(PYTHON_ENV)/bin/buf" lint && "$(PYTHON_ENV)/bin/buf" breaking --against contract.binpb
	$(call install-wheel,$(PYTHON_ENV))
	cd $(CONNECTORS) && KELVIN_BIN="$(BIN)/kelvin" "$(PYTHON_ENV)/bin/python" -m pytest -q --ignore tests/engines
	KELVIN_BIN="$(BIN)/kelvin" KELVIN_TEST_MODEL="$(MODEL)" "$(PYTHON_ENV)/bin/python" -m pytest -q router/tests/openai
	KELVIN_BIN="$(BIN)/kelvin" KELVIN_TEST_MODEL="$(MODEL)" "$(PYTHON_ENV)/bin/python" -m pytest -q cli/tests/collector

test-deploy: build ## dashboards and rules, by a real Prometheus that scrapes a cluster under load
	@if ! cli/setup.sh prometheus; then \
	  echo '*** DASHBOARDS AND RULES ARE NOT TESTED: prometheus cannot be installed (above) ***' >&2; \
	else \
	  set -x; KELVIN_BIN="$(BIN)/kelvin" python3 -m unittest discover -v deploy/tests; \
	fi

test-engines: build model ## vLLM, transformers, connectors of SGLang, LMCache and TensorRT-LLM over a real store, on the CPU; the first time installs 12 GB
	@cli/setup.sh engines "$(ENGINES_ENV)"
	@cli/setup.sh lmcache "$(LMCACHE_ENV)"
	$(call install-wheel,$(ENGINES_ENV))
	$(call install-built-wheel,$(LMCACHE_ENV))
	@test -e "$(ENGINES_MODEL)/model.safetensors" || { set -x; \
	  "$(ENGINES_ENV)/bin/python" $(CONNECTORS)/tests/engines/convert_model.py "$(DEFAULT_MODEL)" "$(ENGINES_MODEL)"; }
	cd $(CONNECTORS) && KELVIN_BIN="$(BIN)/kelvin" KELVIN_HF_MODEL="$(ENGINES_MODEL)" KELVIN_ROUTER_MODEL="$(DEFAULT_MODEL)" OMP_NUM_THREADS=1 \
	  "$(ENGINES_ENV)/bin/python" -m pytest -q tests/engines --ignore tests/engines/test_lmcache.py
	cd $(CONNECTORS) && KELVIN_BIN="$(BIN)/kelvin" OMP_NUM_THREADS=1 \
	  "$(LMCACHE_ENV)/bin/python" -m pytest -q tests/engines/test_lmcache.py

test-ui: build ## the built-in page in a browser, on a cluster under load; screenshots in ~/.cache/kelvin/screenshots
	@if ! cli/setup.sh ui "$(UI_PACKAGES)"; then \
	  echo '*** THE BUILT-IN PAGE IS NOT TESTED IN A BROWSER: what drives one cannot be installed (above) ***' >&2; \
	else set -x; \
	  KELVIN_BIN="$(BIN)/kelvin" KELVIN_UI_PACKAGES="$(UI_PACKAGES)" node --test cli/tests/ui/run.test.mjs; \
	fi

bench-smoke: build ## the benches at their smallest, seconds
	"$(BIN)/kelvin-bench" serve --smoke --kelvin "$(BIN)/kelvin"
	"$(BIN)/kelvin-bench" clusters --smoke --kelvin "$(BIN)/kelvin"
	"$(BIN)/kelvin-bench" core --smoke
	"$(BIN)/kelvin-bench" frontend --smoke --kelvin "$(BIN)/kelvin"
	"$(BIN)/kelvin-bench" index --smoke
	"$(BIN)/kelvin-bench" policies --smoke
	"$(BIN)/kelvin-bench" replay --smoke
	"$(BIN)/kelvin-bench" restart --smoke
	"$(BIN)/kelvin-bench" tiers --smoke
	"$(BIN)/kelvin-bench" transport --smoke

tools:
	@cli/setup.sh tools

test-tools:
	@cli/setup.sh test-tools

model:
ifeq ($(MODEL),$(DEFAULT_MODEL))
	@cli/setup.sh model "$(MODEL)"
else
	@test -e "$(MODEL)" || { echo "MODEL=$(MODEL): there is no such file" >&2; exit 1; }
endif
