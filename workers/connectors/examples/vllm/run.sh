#!/usr/bin/env bash
# A store, a vLLM with the connector, one long prompt asked twice; see README.md.
set -euo pipefail
export VLLM_SERVER_DEV_MODE=1 # for /reset_prefix_cache

MODEL=${1:?usage: run.sh MODEL_DIRECTORY}
KELVIN=${KELVIN:-kelvin}
PYTHON=${PYTHON:-python3}
STORE_PORT=${STORE_PORT:-7440}
PORT=${PORT:-8000}
scratch=$(mktemp -d)
# The group of each child: vLLM has processes of its own.
set -m
cleanup() {
    local group
    for group in $(jobs -p); do kill -- "-$group" 2>/dev/null || true; done
    # vLLM in the middle of a start does not always listen.
    for _ in $(seq 50); do [ -n "$(jobs -r)" ] || break; sleep 0.2; done
    for group in $(jobs -pr); do kill -KILL -- "-$group" 2>/dev/null || true; done
    wait
    rm -rf "$scratch"
}
trap cleanup EXIT

"$KELVIN" store --listen "127.0.0.1:$STORE_PORT" --socket "$scratch/kelvin.sock" --dram "${DRAM:-1GiB}" &
"$PYTHON" -m vllm.entrypoints.openai.api_server --model "$MODEL" --served-model-name example \
    --host 127.0.0.1 --port "$PORT" --enforce-eager --enable-prompt-tokens-details ${VLLM_FLAGS:-} \
    --kv-transfer-config "{\"kv_connector\": \"KelvinConnector\", \"kv_connector_module_path\": \"kelvin.vllm\",
        \"kv_role\": \"kv_both\", \"kv_connector_extra_config\": {\"url\": \"http://127.0.0.1:$STORE_PORT\"}}" &
server=$!
until curl -fs "http://127.0.0.1:$PORT/health" >/dev/null; do
    kill -0 "$server" 2>/dev/null || { echo 'vLLM ended' >&2; exit 1; }
    sleep 1
done

"$PYTHON" - "$scratch/body.json" <<'PYTHON'
import json, sys
prompt = "The store keeps what was computed once. " * 150
json.dump({"model": "example", "prompt": prompt, "max_tokens": 8, "temperature": 0}, open(sys.argv[1], "w"))
PYTHON
for round in first second; do
    # vLLM's own prefix cache is dropped in between, so that what comes back comes from the store.
    curl -fsS -X POST "http://127.0.0.1:$PORT/reset_prefix_cache" >/dev/null
    curl -fsS -o "$scratch/answer.json" -w "$round answer: %{time_total} s, of the prompt " \
        -H 'content-type: application/json' -d "@$scratch/body.json" "http://127.0.0.1:$PORT/v1/completions"
    "$PYTHON" -c 'import json, sys; usage = json.load(open(sys.argv[1]))["usage"]
print((usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0, "of", usage["prompt_tokens"], "tokens cached")' \
        "$scratch/answer.json"
done
