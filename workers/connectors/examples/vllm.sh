#!/usr/bin/env bash
# Serves a model with vLLM, its prefix cache in a store: examples/vllm.sh MODEL [STORE_URL] [more flags of vLLM]
set -euo pipefail

model=$1
store=${2:-http://127.0.0.1:7440}
shift $(($# < 2 ? $# : 2))
exec python -m vllm.entrypoints.openai.api_server --model "$model" --kv-transfer-config '{
    "kv_connector": "KelvinConnector", "kv_connector_module_path": "kelvin.vllm", "kv_role": "kv_both",
    "kv_connector_extra_config": {"url": "'"$store"'"}}' "$@"
