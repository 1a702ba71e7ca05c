#!/usr/bin/env bash
# Builds the binary and puts together all that the image holds, in a new folder:
#
#     scripts/image-root.sh FOLDER
#
# The Dockerfile runs this, and so does .ci/image, which measures what comes of it.
set -euo pipefail

out=$(realpath -m "${1:?the folder to make}")
cd "$(dirname "$0")/.."
if [ -n "$(ls -A "$out" 2>/dev/null)" ]; then
    echo "image-root: $out is not empty" >&2
    exit 1
fi
umask 022

scripts/dist.sh "$out/llmproxy"

mkdir -p "$out"/etc/ssl/certs "$out"/etc/llmproxy "$out"/usr/share/doc/llmproxy
# Whom to believe in TLS. Others can be mounted over it, or named by SSL_CERT_FILE.
install -m 644 /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/ca-certificates.crt"
# Some tools want a name for the user of a process.
echo 'nonroot:x:65532:65532:nonroot:/var/lib/llmproxy:/sbin/nologin' >"$out/etc/passwd"
echo 'nonroot:x:65532:' >"$out/etc/group"
install -m 644 LICENSE "$out/usr/share/doc/llmproxy/LICENSE"
scripts/notices.py | gzip -9n >"$out/usr/share/doc/llmproxy/THIRD-PARTY.gz"

# Whichever user the container is given can write here, if nothing is mounted: OpenShift takes any
# number, and some builders give copied folders to root. Nobody else is in a container.
install -d -m 777 "$out/var/lib/llmproxy"
[ "$(id -u)" != 0 ] || chown 65532:65532 "$out/var/lib/llmproxy"
