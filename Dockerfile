# Three stages: the core, the daemon, and an image that holds nothing but these two.
# The images are arguments, so that a mirror or a pinned digest can take their place.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG GO_IMAGE=golang:1.26-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${GO_IMAGE} AS xray
WORKDIR /build
COPY deploy/xray/go.mod deploy/xray/go.sum ./
RUN CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags '-s -w' -o /out/xray github.com/xtls/xray-core/main

FROM ${RUST_IMAGE} AS raynode
WORKDIR /build
COPY . .
RUN cargo build --release --locked

FROM ${BASE_IMAGE}
COPY --from=xray /out/xray /usr/local/bin/xray
# ca-certificates: the core checks the servers that it connects to.
# setcap: the daemon is not root, and capabilities that are added to a container do not reach such a
# process. With the file's own, the core and nothing else may listen on ports under 1024.
# install: a new volume takes its owner from the directory in the image.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libcap2-bin \
    && rm -rf /var/lib/apt/lists/* \
    && setcap cap_net_bind_service+ep /usr/local/bin/xray \
    && groupadd --gid 10001 raynode \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/raynode --shell /usr/sbin/nologin raynode \
    && install -d -o raynode -g raynode -m 0700 /var/lib/raynode /run/raynode \
    && install -d -o raynode -g raynode /usr/local/share/xray
COPY --from=raynode /build/target/release/raynode /usr/local/bin/raynode
USER raynode
VOLUME /var/lib/raynode
EXPOSE 62050 62051
ENTRYPOINT ["raynode"]
CMD ["init"]
