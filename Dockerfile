# Every image of docker-compose.yml: the service, and the others with their configuration inside. A file that is mounted
# from a checkout keeps its mode, and one that was made under umask 077 is unreadable for the users of the images; so each
# COPY from the checkout into an image that runs sets the mode. (0755 also for files where a whole directory is copied.)
#
# Images are pinned by version and, where it is known, by the digest of their list of platforms.

# The service: built with Rust on bookworm, run on distroless of Debian 12 (the same glibc). Each stage is built for the platform
# of the image, linux/amd64 or linux/arm64 (docs/operations.md, Images).
FROM rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS build
WORKDIR /build
# What the binary is made of: lua/, migrations/, the catalogue and the users of both stores are embedded, proto/ is compiled by build.rs.
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY lua lua
COPY migrations migrations
COPY deploy/catalogue.csv deploy/redis.acl deploy/
COPY deploy/postgres deploy/postgres
COPY src src
# The build has no repository that build.rs could ask. `yoink --version` shows this value.
ARG YOINK_COMMIT=unknown
# Only downloads are cached: cargo could take a cached target/ for a build of these sources.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    YOINK_COMMIT="$YOINK_COMMIT" cargo build --locked --release --bin yoink
RUN target/release/yoink descriptor > yoink.binpb

# Envoy with its configuration and the API of this build. No digest of this version was known.
FROM envoyproxy/envoy:v1.40.0 AS edge
COPY --chmod=0644 deploy/envoy/envoy.yaml /etc/envoy/envoy.yaml
COPY --from=build --chmod=0644 /build/yoink.binpb /etc/envoy/yoink.binpb
EXPOSE 8080

FROM redis:8.2.9-bookworm@sha256:66b7f4c2f3c6ef1b298bbd7b13c806bc6f71e61f1136a4f58710daf2cb053b21 AS redis
COPY --chmod=0644 deploy/redis.conf /usr/local/etc/redis/redis.conf
CMD ["redis-server", "/usr/local/etc/redis/redis.conf"]

FROM postgres:18.6-bookworm@sha256:3725f4e2499eef5134592b3b4ab79a543ed7f8e533b05b5b637af926630f6650 AS postgres
COPY --chmod=0644 deploy/postgres/roles.sql /usr/share/yoink/roles.sql
COPY --chmod=0755 deploy/compose/postgres-roles.sh /usr/local/bin/postgres-roles.sh

FROM prom/prometheus:v3.13.3@sha256:6976aa8a60fec930796ce5772b8d12da7a318a5daa8d40d69c5c7819a05eeed7 AS prometheus
COPY --chmod=0755 deploy/prometheus /etc/prometheus

FROM grafana/grafana:13.2.3@sha256:b28bae15e219c998fb0e0424ed724930cc61b1f61fb404d47c862f9a23f9e572 AS grafana
COPY --chmod=0755 deploy/grafana/provisioning /etc/grafana/provisioning
COPY --chmod=0755 deploy/grafana/dashboards /var/lib/grafana-dashboards

# Makes the passwords of a deployment. It runs as root, because it gives each file an owner.
FROM debian:bookworm-20260918-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251 AS passwords
COPY --chmod=0644 deploy/redis.acl /usr/share/yoink/redis.acl
COPY --chmod=0755 deploy/compose/passwords.sh /usr/local/bin/passwords.sh
ENTRYPOINT ["passwords.sh"]

# Makes the certificates of a deployment. It is the image of the build, because that one has openssl.
FROM rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS certificates
COPY --chmod=0755 deploy/compose/certificates.sh /usr/local/bin/certificates.sh
ENTRYPOINT ["certificates.sh"]

# glibc, libgcc and the certificates of authorities, and nothing else: no shell, no package manager. Its tags name no version.
FROM gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f AS service
COPY --from=build /build/target/release/yoink /usr/local/bin/yoink
# The demo catalogue, for `yoink import`.
COPY --chmod=0644 deploy/catalogue.csv /usr/share/yoink/catalogue.csv
# yoink.toml is read from here. Without one, defaults and the environment apply.
WORKDIR /etc/yoink
# A number, so that a container runtime can check that it is not root. The image has no name for it and needs none.
USER 10001
# gRPC, and HTTP for /healthz, /readyz and /metrics. Both listen on loopback unless YOINK_GRPC_LISTEN and
# YOINK_HTTP_LISTEN have other addresses.
EXPOSE 50051 9464
# No HEALTHCHECK, because the image has no HTTP client. Check /readyz from outside.
ENTRYPOINT ["yoink"]
CMD ["serve"]
