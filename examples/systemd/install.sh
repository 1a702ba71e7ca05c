#!/bin/sh
# Installs or updates the service: `sudo ./install.sh path/to/llmproxy`. Existing files in /etc/llmproxy
# are kept. With DESTDIR it writes the files there, for a package, and does not change the system.
set -eu

binary=${1:?"usage: install.sh path/to/llmproxy"}
here=$(dirname "$0")
root=${DESTDIR-}
conf=$root/etc/llmproxy

if [ -z "$root" ]; then
    getent passwd llmproxy >/dev/null || useradd --system --user-group --no-create-home \
        --home-dir /var/lib/llmproxy --shell /usr/sbin/nologin llmproxy
fi
own() { # The service may read it; only root may change it.
    [ -n "$root" ] || chown root:llmproxy "$1"
}

mkdir -p "$root/usr/local/bin" "$root/etc/systemd/system" "$conf/secrets"
# `install` writes a new file: the running binary is unchanged until the restart.
install -m 0755 "$binary" "$root/usr/local/bin/llmproxy"
install -m 0644 "$here/llmproxy.service" "$root/etc/systemd/system/llmproxy.service"
chmod 0755 "$conf"
chmod 0750 "$conf/secrets"
own "$conf/secrets"
if [ ! -e "$conf/llmproxy.yaml" ]; then
    install -m 0640 "$here/llmproxy.yaml" "$conf/llmproxy.yaml"
    own "$conf/llmproxy.yaml"
fi
if [ ! -e "$conf/secrets/admin-token" ]; then
    (umask 077 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$conf/secrets/admin-token")
    chmod 0640 "$conf/secrets/admin-token"
    own "$conf/secrets/admin-token"
fi

[ -z "$root" ] || exit 0
systemctl daemon-reload
echo "Edit $conf/llmproxy.yaml, then run: systemctl enable --now llmproxy"
