#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks. For Debian and Ubuntu; elsewhere
# it only says what is missing. Does nothing, and asks for nothing, when everything is there.
# `setup.sh build` leaves out what only the tests need.
set -euo pipefail

PATH=$PATH:/usr/sbin # Debian keeps it from ordinary users, and mariadbd is there.

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
    # The tests make a virtual environment; Debian ships the module for that apart.
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    need pkill procps
    need systemd-analyze systemd # the checker of units; nothing of it is started
    # Databases, by packages that have the programs without a service. redis-tools has the server
    # by the name of redis-check-rdb.
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
    # Removing nothing: MariaDB would displace a MySQL.
    install=("${as_root[@]}" apt-get install -y -qq --no-install-recommends --no-remove)
    "${as_root[@]}" apt-get update -qq
    # Ubuntu 22.04 has a version in MariaDB's names.
    apt-cache show mariadb-server-core &>/dev/null || missing=("${missing[@]/%-core/-core-10.6}")
    echo "setup: installing ${missing[*]}"
    if [[ " ${missing[*]} " = *" postgresql "* ]]; then
        # There is no such package of PostgreSQL, but it can be kept from making a database and
        # starting it.
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
