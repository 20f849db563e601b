#!/usr/bin/env bash
# Kelvin's router beside SGLang's, its successor smg, and vLLM's, before the same toy engines in one run. Installs them
# from PyPI in an environment of their own; not part of CI. What is given goes on to kelvin-bench frontend.
#
# Usage: bench/peers/frontend.sh [--stream 64] [--connections 16] [--seconds 5] ...
set -euo pipefail
cd "$(dirname "$0")"

cache="${XDG_CACHE_HOME:-$HOME/.cache}/kelvin"
env="$cache/peers-routers"
bench="${KELVIN_BENCH:-${CARGO_TARGET_DIR:-$cache/target}/release/kelvin-bench}"

[ -x "$bench" ] || { echo "$bench is not there: make build" >&2; exit 1; }
if [ ! -e "$env/.done" ]; then
    echo "installing the peers in $env" >&2
    python3 -m venv "$env" && "$env/bin/pip" install --quiet sglang-router==0.3.2 smg==1.13.0 vllm-router==0.1.17 || {
        echo 'the peers cannot be installed (above)' >&2
        exit 1
    }
    touch "$env/.done"
fi

flags='--host 127.0.0.1 --port {port} --worker-urls {urls} --policy cache_aware --log-level error'
exec "$bench" frontend \
    --peer "sglang-router=$env/bin/sglang-router launch $flags --prometheus-port 29101" \
    --peer "smg=$env/bin/smg launch $flags --prometheus-port 29102" \
    --peer "vllm-router=$env/bin/vllm-router $flags --prometheus-port 29103" \
    "$@"
