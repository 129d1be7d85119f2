# The core and the daemon, built from pinned sources, and an image with nothing else in it: no shell, no package
# manager. BuildKit and the classic builder build it, for amd64 and arm64, each on either; docs/docker.md.
# The images are arguments, so that a mirror, a digest or one made here can take their place. The second one
# brings rustup and Debian's apt.
ARG GO_IMAGE=golang:1.26-bookworm
ARG RUST_IMAGE=rust:1.95-bookworm

# Compilers run on the machine that builds, whichever it builds for. The classic builder does not say which that is.
# hadolint ignore=DL3029
FROM --platform=${BUILDPLATFORM:-linux} ${GO_IMAGE} AS xray
WORKDIR /build
# The versions and hashes of every module are in these two; readonly refuses any other.
COPY deploy/xray/go.mod deploy/xray/go.sum ./
ARG TARGETARCH
RUN CGO_ENABLED=0 GOARCH="${TARGETARCH:-$(go env GOHOSTARCH)}" \
    go build -mod=readonly -buildvcs=false -trimpath -ldflags '-s -w' -o /out/xray github.com/xtls/xray-core/main

# hadolint ignore=DL3029
FROM --platform=${BUILDPLATFORM:-linux} ${RUST_IMAGE} AS raynode
WORKDIR /build
ARG TARGETARCH
COPY deploy/docker/target.sh ./
RUN sh target.sh "${TARGETARCH:-$(dpkg --print-architecture)}" >>"$CARGO_HOME/config.toml"
# Optimising across crates takes long. The tests of the image do with less: LTO=off, CODEGEN_UNITS=16, OPT_LEVEL=1.
ARG CARGO_PROFILE_RELEASE_LTO=fat
ARG CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1
ARG CARGO_PROFILE_RELEASE_OPT_LEVEL=3
# The dependencies, for programs that do nothing: this layer stays as long as they do.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches examples tests/it \
    && for main in build src/main benches/node benches/usage examples/demo tests/it/main; do \
        echo 'fn main() {}' >"$main.rs" || exit; \
    done \
    && touch src/lib.rs \
    && cargo build --release --locked
COPY build.rs ./
COPY proto proto
COPY src src
# Cargo goes by the time of a file, and these are older than what was built in their place.
RUN touch build.rs src/main.rs src/lib.rs \
    && cargo build --release --locked \
    && install -D target/*-linux-musl/release/raynode /out/raynode

# What the image is made of. It is put together here, because there it has no program to do it.
# hadolint ignore=DL3029
FROM --platform=${BUILDPLATFORM:-linux} ${RUST_IMAGE} AS image
# The authorities of today: a pinned version would be of a package that Debian removes with its next update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libcap2-bin \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /image
# A new volume takes its owner from the folder in the image.
RUN install -d etc/ssl/certs usr/local/bin usr/local/share/xray \
    && cp /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/ \
    && echo 'hosts: files dns' >etc/nsswitch.conf \
    && printf '%s\n' root:x:0:0::/:/nologin raynode:x:10001:10001::/var/lib/raynode:/nologin >etc/passwd \
    && printf '%s\n' root:x:0: raynode:x:10001: >etc/group \
    && install -d -o 10001 -g 10001 -m 0700 var/lib/raynode run/raynode
COPY --from=xray /out/xray usr/local/bin/xray
COPY --from=raynode /out/raynode usr/local/bin/raynode
# Capabilities that are added to a container reach a process that is not root only by its file. The daemon hands
# on to its cores what they can use, those that are installed later among them. Permitted and not effective:
# so it also runs where it may have none of them, as with no-new-privileges.
RUN setcap cap_net_bind_service,cap_net_admin=p usr/local/bin/raynode

FROM scratch
LABEL org.opencontainers.image.title=raynode \
    org.opencontainers.image.description="Node daemon beside Xray, and Xray" \
    org.opencontainers.image.version=1.0.0 \
    org.opencontainers.image.source=https://github.com/raynode/raynode \
    org.opencontainers.image.licenses="(MIT OR Apache-2.0) AND MPL-2.0"
# As a folder: a file alone would lose its capabilities on the way.
COPY --from=image /image/ /
USER 10001:10001
# Relative paths in settings begin here, and so does .env, where somebody wants one that is read again by a reload.
WORKDIR /var/lib/raynode
VOLUME /var/lib/raynode
EXPOSE 62050 62051
# It answers also while no panel is connected.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/raynode", "status", "--quiet"]
ENTRYPOINT ["/usr/local/bin/raynode"]
CMD ["init"]
