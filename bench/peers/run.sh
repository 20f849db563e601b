#!/usr/bin/env bash
# Mooncake's store, Redis and a raw stream over loopback TCP, beside Kelvin's transports, one after the other on this
# machine. Installs Mooncake and a Redis client from PyPI in an environment of their own; not part of CI.
#
# Usage: bench/peers/run.sh [BLOCK_KIB] [BATCH] [SECONDS]
set -euo pipefail
cd "$(dirname "$0")"

block_kib=${1:-2048} batch=${2:-16} seconds=${3:-3}
cache="${XDG_CACHE_HOME:-$HOME/.cache}/kelvin"
env="$cache/peers"
bench="${KELVIN_BENCH:-${CARGO_TARGET_DIR:-$cache/target}/release/kelvin-bench}"

[ -x "$bench" ] || { echo "$bench is not there: make build" >&2; exit 1; }
if [ ! -e "$env/.done" ]; then
    echo "installing Mooncake in $env" >&2
    python3 -m venv "$env" && "$env/bin/pip" install --quiet 'mooncake-transfer-engine-non-cuda' 'redis>=5' || {
        echo 'the peers cannot be installed (above)' >&2
        exit 1
    }
    touch "$env/.done"
fi

peer() {
    local log
    log=$(mktemp)
    "$env/bin/python" peers.py "$1" --block-kib "$block_kib" --batch "$batch" --seconds "$seconds" 2>"$log" ||
        { tail -5 "$log" >&2; echo "  *** $1 COULD NOT BE MEASURED ***"; }
    rm -f "$log"
}

echo "blocks of $block_kib KiB in batches of $batch; CPU of all processes"
peer raw
peer mooncake
if command -v redis-server >/dev/null; then peer redis; else echo '  *** redis-server is not there: apt-get install redis-server ***'; fi
"$bench" transport --block-kib "$block_kib" --batch "$batch"
