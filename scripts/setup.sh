#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks. For Debian and Ubuntu; elsewhere
# it only says what is missing. Does nothing, and asks for nothing, when everything is there.
set -euo pipefail

missing=()
need() { # command, package
    command -v "$1" >/dev/null || missing+=("$2")
}
need cmake cmake             # zlib-ng, which Pingora builds
need cc gcc
need c++ g++
need curl curl
need python3 python3
# The tests make a virtual environment; Debian ships the module for that apart.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup: please install: ${missing[*]}" >&2
        exit 1
    fi
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    echo "setup: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" apt-get install -y -qq --no-install-recommends ca-certificates "${missing[@]}"
fi

if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    echo "setup: installing Rust"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile default
fi
