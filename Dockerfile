# syntax=docker/dockerfile:1
#
#     docker build -t llmproxy .
#
# builds for the architecture of the machine (amd64 or arm64). `docker buildx build --platform` builds
# for another one under emulation. There is no cross-compilation.

# Debian 12 for glibc 2.36, the first version whose static programs support packed relocations.
FROM rust:1.95.0-bookworm AS build

# cmake is for zlib-ng, which Pingora builds; the other packages are for our own scripts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils ca-certificates cmake python3 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY . .
ARG TARGETARCH
RUN --mount=type=cache,target=/usr/local/cargo/registry,id=llmproxy-registry,sharing=locked \
    --mount=type=cache,target=/src/target,id=llmproxy-target-$TARGETARCH,sharing=locked \
    scripts/image-root.sh /image


# The binary needs no file except its configuration, so the image has no distribution: no shell, no
# packages, nothing to patch except the binary.
FROM scratch

ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="LLMProxy" \
      org.opencontainers.image.description="A programmable gateway at the edge of a fleet of LLM servers" \
      org.opencontainers.image.source="https://github.com/llmproxy/llmproxy" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

COPY --from=build /image /

# There is no /tmp: SQLite puts its temporary files beside its databases.
ENV LLMPROXY_DATA_DIR=/var/lib/llmproxy \
    SQLITE_TMPDIR=/var/lib/llmproxy
USER 65532:65532
VOLUME /var/lib/llmproxy

# 8000: the API. 8001: the admin API. 9100: server.metrics_listen. The configuration decides.
EXPOSE 8000 8001 9100
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/llmproxy", "health", "--config", "/etc/llmproxy/llmproxy.yaml"]

ENTRYPOINT ["/llmproxy"]
CMD ["serve", "--config", "/etc/llmproxy/llmproxy.yaml"]
