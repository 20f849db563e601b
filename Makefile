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

CARGO := cargo
# One profile for everything: llama.cpp is compiled once.
FLAGS := --release --locked

.PHONY: help up build test check fmt clippy unit doc-test bench-smoke tools model

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  MODEL=path.gguf serves another model (now: $(MODEL)); UP='--decode 2' adds flags to kelvin up"

up: tools model build ## serve a model on http://127.0.0.1:8080 until Ctrl-C
	@exec "$(BIN)/kelvin" up --model "$(MODEL)" $(if $(MODEL_NAME),--model-name "$(MODEL_NAME)") $(UP)

build: tools ## the binaries kelvin and kelvin-bench, release
	$(CARGO) build $(FLAGS) -p kelvin-cli -p kelvin-bench

test: tools model check unit doc-test ## formatting, lints and every test

check: fmt clippy ## formatting and lints alone

fmt:
	$(CARGO) fmt --all -- --check

clippy: tools
	$(CARGO) clippy $(FLAGS) --workspace --all-targets -- -D warnings

unit: export KELVIN_TEST_MODEL = $(MODEL)
unit: tools model
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -x; \
	  $(CARGO) nextest run $(FLAGS) --workspace --profile $(NEXTEST_PROFILE); \
	else set -x; \
	  $(CARGO) test $(FLAGS) --workspace --lib --bins --tests; \
	fi

doc-test: tools
	$(CARGO) test $(FLAGS) --workspace --doc

bench-smoke: build ## the benches at their smallest, seconds
	"$(BIN)/kelvin-bench" serve --smoke --kelvin "$(BIN)/kelvin"
	"$(BIN)/kelvin-bench" core --smoke
	"$(BIN)/kelvin-bench" index --smoke
	"$(BIN)/kelvin-bench" policies --smoke
	"$(BIN)/kelvin-bench" restart --smoke
	"$(BIN)/kelvin-bench" tiers --smoke
	"$(BIN)/kelvin-bench" transport --smoke

tools:
	@cli/setup.sh tools

model:
ifeq ($(MODEL),$(DEFAULT_MODEL))
	@cli/setup.sh model "$(MODEL)"
else
	@test -e "$(MODEL)" || { echo "MODEL=$(MODEL): there is no such file" >&2; exit 1; }
endif
