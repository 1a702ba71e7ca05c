#!/usr/bin/env bash
# Builds the binary of the releases and of the image, for this machine's architecture:
#
#     scripts/dist.sh FILE
#
# It is static: it needs nothing of the system that it runs on. Nothing is installed by this script;
# `scripts/setup.sh build` does that. Static means glibc's own archives (libc.a of libc6-dev), of
# 2.36 or later.
set -euo pipefail

out=$(realpath -m "${1:?the file to write}")
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
# The linker that comes with Rust, on every architecture: it packs the many relative relocations of
# a static PIE into a few bytes, which GNU's does only on some.
lld=$(rustc --print sysroot)/lib/rustlib/$host/bin/gcc-ld
export RUSTFLAGS="-C target-feature=+crt-static"
if [ -x "$lld/ld.lld" ]; then
    RUSTFLAGS+=" -C link-arg=-fuse-ld=lld -C link-arg=-B$lld -C link-arg=-Wl,--pack-dyn-relocs=relr"
else
    echo "dist: this Rust comes without a linker; the binary will be larger" >&2
fi
# Random numbers come from the system call; a static program does not find it by its name, and would
# ask a file in /dev.
RUSTFLAGS+=' --cfg getrandom_backend="linux_getrandom"'
# What nobody here can ask SQLite for: full-text search and R-trees. It goes by LIBSQLITE3_FLAGS,
# which libsqlite3-sys reads.
export LIBSQLITE3_FLAGS="-USQLITE_ENABLE_FTS3 -USQLITE_ENABLE_FTS3_PARENTHESIS -USQLITE_ENABLE_FTS5
    -USQLITE_ENABLE_RTREE"

# Kernels of 64-bit ARM have pages of 4, 16 or 64 KiB. jemalloc would work only with those of this machine.
case $host in aarch64*) export JEMALLOC_SYS_WITH_LG_PAGE=16 ;; esac

# With --target the flags are not for build scripts and macros, which cannot be static.
cargo build --profile dist --locked --bin llmproxy --target "$host"
install -D -m 755 "${CARGO_TARGET_DIR:-target}/$host/dist/llmproxy" "$out"

# An interpreter in it would mean a dynamic loader, which the image does not have.
if readelf --program-headers --wide "$out" | grep -q INTERP; then
    echo "dist: $out is not static" >&2
    exit 1
fi
"$out" --version
