# A static binary with the certificates that TLS wants, and nothing else: no shell, no libc, a user who owns nothing.
# No HEALTHCHECK: whoever runs it asks /live and /ready, with UNSTALE_HTTP__LISTEN=0.0.0.0:9464.

FROM rust:1-alpine AS build
# For the C and assembly in ring.
RUN apk add --no-cache musl-dev
WORKDIR /unstale
COPY Cargo.toml Cargo.lock ./
# Cargo.toml names them, so they must be there.
COPY benches benches
COPY migrations migrations
COPY src src
ENV CARGO_PROFILE_RELEASE_STRIP=true
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/unstale/target \
    cargo build --release --locked --bin unstale && cp target/release/unstale /

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /unstale /
USER 65534:65534
ENTRYPOINT ["/unstale"]
CMD ["run"]
