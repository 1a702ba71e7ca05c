#!/usr/bin/env bash
# Installs the missing dependencies of the build and the tests, on Debian and Ubuntu; elsewhere it
# only lists them. Does nothing, and needs no privileges, if nothing is missing.
# `setup.sh build` skips what only the tests need.
set -euo pipefail

PATH=$PATH:/usr/sbin # Where Debian has mariadbd; it is not in the path of ordinary users.

missing=()
need() { # command, package
    command -v "$1" >/dev/null || missing+=("$2")
}
need cmake cmake             # zlib-ng, which Pingora builds
need cc gcc
need c++ g++
need curl curl
if [ "${1-}" != build ]; then # What only the tests need.
    need python3 python3
    # The tests create a virtual environment; Debian has a separate package for that module.
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    need pkill procps
    need systemd-analyze systemd # only its checker of units is used
    need valgrind valgrind       # counts the instructions of a request
    # Databases, from packages without a service. In redis-tools the server is called
    # redis-check-rdb.
    command -v redis-server >/dev/null || need redis-check-rdb redis-tools
    need mariadbd mariadb-server-core
    need mariadb mariadb-client-core
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || need postgres postgresql
fi

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup: please install: ${missing[*]}" >&2
        exit 1
    fi
    as_root=(env DEBIAN_FRONTEND=noninteractive)
    [ "$(id -u)" = 0 ] || as_root=(sudo "${as_root[@]}")
    # --no-remove: MariaDB would replace an installed MySQL.
    install=("${as_root[@]}" apt-get install -y -qq --no-install-recommends --no-remove)
    "${as_root[@]}" apt-get update -qq
    # In Ubuntu 22.04 the names of MariaDB's packages have a version.
    apt-cache show mariadb-server-core &>/dev/null || missing=("${missing[@]/%-core/-core-10.6}")
    echo "setup: installing ${missing[*]}"
    if [[ " ${missing[*]} " = *" postgresql "* ]]; then
        # PostgreSQL has no package without a service, but it can be configured not to create and
        # start a database.
        "${install[@]}" postgresql-common
        conf=/etc/postgresql-common/createcluster.conf
        "${as_root[@]}" sed -i.before 's/^#*create_main_cluster.*/create_main_cluster = false/' $conf
        trap '"${as_root[@]}" mv $conf.before $conf' EXIT
    fi
    "${install[@]}" ca-certificates "${missing[@]}"
fi

if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    echo "setup: installing Rust"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile default
fi
