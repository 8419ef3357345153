# The service: built with Rust on bookworm, run on bookworm-slim (the same glibc).

FROM rust:1.95-bookworm AS build
WORKDIR /build
# What the binary is made of: lua/ and migrations/ are embedded, proto/ is compiled by build.rs.
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY lua lua
COPY migrations migrations
COPY src src
# There is no repository in here for build.rs to ask; `yoink --version` shows this.
ARG YOINK_COMMIT=unknown
# Only downloads are cached: a kept target/ could take older sources for the ones it has built.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    YOINK_COMMIT="$YOINK_COMMIT" cargo build --locked --release --bin yoink
RUN target/release/yoink descriptor > yoink.binpb

# The sidecar: Envoy with its configuration and the contract of this build.
FROM envoyproxy/envoy:v1.40.0 AS edge
COPY deploy/envoy/envoy.yaml /etc/envoy/envoy.yaml
COPY --from=build /build/yoink.binpb /etc/envoy/yoink.binpb
EXPOSE 8080

FROM debian:bookworm-slim AS service
# For rediss://, which trusts the system's certificates; the slim image has none.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin yoink
COPY --from=build /build/target/release/yoink /usr/local/bin/yoink
# yoink.toml is looked for here; without one, defaults and environment apply.
WORKDIR /etc/yoink
# By number, so that a runtime can see that it is not root.
USER 10001
# gRPC, and HTTP for /healthz and /readyz. Both listen on loopback unless YOINK_GRPC_LISTEN and
# YOINK_HTTP_LISTEN say otherwise.
EXPOSE 50051 9464
# No HEALTHCHECK: nothing in here speaks HTTP. Ask /readyz from outside.
ENTRYPOINT ["yoink"]
CMD ["serve"]
